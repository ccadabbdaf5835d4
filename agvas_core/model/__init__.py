"""The model, in the order of the paper. Read it top to bottom:

    encoders   eq. 1     images -> f_s and f_p
                         pixel encoders: sam_encoder, vit_encoder (DINO, CLIP, SigLIP), nano_encoder (with prior)
    spam       eq. 2     f_align = MHCA(Q=f_s, K=f_p, V=f_p)
    lmm        eq. 3     Concat(f_s, f_align, f_txt) -> text logits and the three anchor states
    refiner    3.1, B.4  anchor states -> h_nor, h_ano, h_seg
    two_way    eq. 5     BiAttn
    agmd       eq. 4-7   [t, h] and f_p -> mask logits, before sigmoid and softmax
                         (sam_decoder: what LISA has in its place)
    fusion     eq. 6-8   logits -> P_seg, P_nor, P_ano, P, M
    losses     eq. 9-11  text, masks, and their sum
    agvas      fig. 3    the whole path in one forward()
    generation 3.1, B.2  greedy text, where the answer is not known beforehand

Around them: preset (a table) -> config (checked by validation) -> build (the modules) -> checkpoint (weights, configuration and
tokenizer as a folder). From published weights: published (files) -> pretrained_config, sam_checkpoint, vocabulary -> pretrained (the
model) -> trained (what of it learns, with lora beside it). inventory counts it.

Letters in the shape comments:
    B batch   N semantic tokens   L sequence length (eq. 5: number of two-way blocks)   V vocabulary
    D width of the LMM   C channels of f_p   h, w grid of f_p   H, W pixels   3 the anchors, always in the order NOR, ANO, SEG
"""
