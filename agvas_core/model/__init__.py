"""The model, in the order of the paper. Read it top to bottom:

    encoders   eq. 1     images -> f_s and f_p              (sam_encoder, nano_encoder with prior: two pixel encoders)
    spam       eq. 2     f_align = MHCA(Q=f_s, K=f_p, V=f_p)
    lmm        eq. 3     Concat(f_s, f_align, f_txt) -> text and the three anchor states
    refiner    3.1, B.4  anchor states -> h_nor, h_ano, h_seg
    two_way    eq. 5     BiAttn
    agmd       eq. 4-6   [t, h] and f_p -> mask logits
    fusion     eq. 6-8   logits -> P_seg, P_nor, P_ano, P, M
    losses     eq. 9-11
    agvas      the whole path in one forward()
    build      a ModelConfig -> modules; generation: greedy text

Letters in the shape comments:
    B batch   N semantic tokens   L sequence length   V vocabulary   D width of the LMM   C channels of f_p
    h, w grid of f_p   H, W pixels   3 always the anchors in the order NOR, ANO, SEG
"""
