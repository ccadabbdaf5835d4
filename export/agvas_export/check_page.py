"""Images that an engine judges otherwise than the model, side by side: one HTML file that opens from disk."""

import base64
import html

import cv2
import numpy as np
from numpy.typing import NDArray

from agvas_export.check import Checked, Unlike

__all__ = ["render_page"]

_WIDTH_PX = 300
_BOTH, _REFERENCE, _ENGINE = (120, 200, 120), (230, 120, 40), (60, 90, 240)  # BGR

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1040px;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
h1{font-size:1.4rem}figure{margin:0 0 1.6rem;border-top:1px solid #ddd;padding-top:.8rem}
figcaption{margin-bottom:.4rem}img{width:300px;margin-right:8px;border-radius:3px;vertical-align:top}
table{border-collapse:collapse;margin:.6rem 0 1.4rem}td,th{padding:.15rem .9rem .15rem 0;text-align:left}
td.n{text-align:right;font-variant-numeric:tabular-nums}.bad{color:#b3261e;font-weight:600}
i{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin:0 .3em 0 1em}
@media(prefers-color-scheme:dark){body{background:#181818;color:#e6e6e6}figure{border-color:#444}.bad{color:#ff8a80}}
"""


def render_page(done: Checked) -> str:
    """The page, whole."""
    certificate = done.certificate
    rows = "".join(
        f"<tr><td>{_text(each.backend)}<td>{joint.joint}<td>{joint.tensor}<td class='n{' bad' * (not joint.holds)}'>{joint.error:.1e}"
        f"<td class=n>{joint.tolerance:.0e}"
        for each in certificate.backends
        for joint in each.joints
    )
    verdict = "passed" if certificate.passed else "<span class=bad>failed</span>"
    more = f" The worst {len(done.unlike)} are shown." if done.differing > len(done.unlike) else ""
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>parity of {_text(certificate.bundle)}</title><style>{_STYLE}</style>"
        f"<h1>{_text(certificate.bundle)}: parity {verdict}</h1>"
        f"<p>{certificate.images} images, {_text(certificate.precision)}, on {_text(str(certificate.hardware))}, "
        f"{certificate.created:%Y-%m-%d %H:%M} UTC; reference {_text(certificate.reference)}.</p>"
        f"<table><tr><th>engine<th>joint<th>tensor<th>error<th>allowed{rows}</table>"
        f"<p>Images whose verdict or mask differs: {done.differing}.{more} Marked by<i style='background:#78c878'></i>both"
        f"<i style='background:#2878e6'></i>the model only<i style='background:#f05a3c'></i>the engine only; right, where their score maps "
        f"differ, and by how much at most.</p>" + "".join(map(_figure, done.unlike)) + "</html>\n"
    )


def _figure(each: Unlike) -> str:
    verdict = each.engine.verdict if each.engine else "NO_VERDICT"
    flipped = f"<span class=bad>{each.reference.verdict} became {verdict}</span>"
    same = f"{verdict} both"
    words = flipped if verdict != each.reference.verdict else same
    off = f", score {each.reference.score:.4f} and {each.engine.score:.4f}" if each.engine else ""
    pictures = [each.image, marked(each)]
    if each.engine is not None:
        pictures.append(difference(each))
    largest = f", maps differ by up to {each.largest:.1e}" if each.engine else ""
    shown = "".join(f"<img alt='' src='{_encoded(picture)}'>" for picture in pictures)
    return (
        f"<figure><figcaption><b>{_text(each.name)}</b> on {_text(each.backend)}: {words}, mask IoU {each.iou:.4f}{off}{largest}"
        f"</figcaption>{shown}</figure>"
    )


def marked(each: Unlike) -> NDArray[np.uint8]:
    """The image, RGB, with what both mark, and either alone."""
    own = each.engine.mask if each.engine else np.zeros_like(each.reference.mask)
    out = each.image.copy()
    truth = each.reference.mask
    for mask, (blue, green, red) in ((truth & own, _BOTH), (truth & ~own, _REFERENCE), (own & ~truth, _ENGINE)):
        out[mask] = (0.35 * out[mask] + 0.65 * np.array([red, green, blue])).astype(np.uint8)
    return out


def difference(each: Unlike) -> NDArray[np.uint8]:
    """Where the score maps differ, the largest difference white; RGB."""
    assert each.engine is not None
    off = np.abs(each.engine.score_map - each.reference.score_map)
    grey = np.asarray(255 * off / max(float(off.max()), 1e-9), np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def _encoded(picture: NDArray[np.uint8]) -> str:
    height = max(1, round(picture.shape[0] * _WIDTH_PX / picture.shape[1]))
    small = cv2.resize(picture, (_WIDTH_PX, height), interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def _text(value: object) -> str:
    return html.escape(str(value))
