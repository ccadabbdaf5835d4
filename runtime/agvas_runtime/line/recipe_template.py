"""The recipe that ``agvas recipe new`` writes: valid as it stands, every other key beside it as a comment."""

__all__ = ["recipe_template"]

_TEXT = """\
# What decides about {product}. agvas recipe lint FILE checks it; its sha256 is its version.
product: {product}
# note: Who made it, for which line, and why.

model: {model}
# bundle: {identity}          # pins the model: another bundle of that name is refused

# What to look for, in words; the model's own instruction where it is left out.
# prompt: Please segment the scratches in this image.
# mode: direct                          # describe, describe-plus (with normal_look), explain
# Or several kinds, each in its own words; the model looks once for each.
# kinds:
#   scratch: {{prompt: Please segment the scratches in this image.}}
#   stain: {{prompt: Please segment the stains in this image.}}

{frame}
# mm_per_px: 0.05

# Polygons, [[x, y], ...] in pixels of that frame. A rule looks at one ROI, or at all of the frame.
# rois:
#   face: [[40, 40], [600, 40], [600, 440], [40, 440]]
# ignore:
#   - [[0, 0], [30, 0], [30, 30], [0, 30]]

# agvas calibrate sets these from good parts, with a guarantee.
# thresholds: {{threshold: 0.5, seed_threshold: 0.6}}

# A region counts where it lies in the ROI and is as large as the rule says. More than max_count of them: FAIL.
rules:
  - max_count: 0
#     name: long scratches
#     roi: face
#     kind: scratch
#     min_score: 0.7
#     min_area_mm2: 0.5                   # or min_area_px; so too min_length_mm, min_width_mm

deadline_ms: 2000                       # from the trigger; later there is NO_VERDICT

keep:                                   # images on disk; the ledger's rows always stay
  rejects: true
  no_verdicts: true
  sample_every: 100
  max_gb: 20
"""


def recipe_template(product: str, *, model: str, identity: str, frame_px: tuple[int, int] | None = None) -> str:
    """YAML for a product.

    Args:
        identity: the bundle as it is now, named in a comment.
        frame_px: width and height.
    """
    frame = (
        f"frame: {{width_px: {frame_px[0]}, height_px: {frame_px[1]}}}"
        if frame_px
        else "# frame: {width_px: 640, height_px: 480}"
    )
    return _TEXT.format(product=product, model=model, identity=identity, frame=frame)
