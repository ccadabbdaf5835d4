"""Where score maps come from. A model comes in through an entry point, so that the core imports no runtime.

A package that can segment registers a function under the group ``agvas.predictors``; the runtime's is ``bundle``:

    predictor = find_opener("bundle")("nano")
    score_map, mask, verdict, image_score, answer = predictor.predict(path)
    score_map, mask, answer, accept = predictor.reply(image, "Segment the scratch.")
"""

import inspect
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.errors import ImageError, SetupError, UsageError
from agvas_core.contract.images.decode import check_header, decode_samples
from agvas_core.contract.manifest import sha256_of
from agvas_core.data.datasets.item import DataSet, Item

__all__ = [
    "GROUP",
    "Listener",
    "MapFiles",
    "MapSource",
    "Model",
    "Prediction",
    "Predictor",
    "Scored",
    "check_upright",
    "find_opener",
    "pair_predictions",
    "read_map",
]


GROUP = "agvas.predictors"


class Prediction(NamedTuple):
    """What a model says of one image."""

    score_map: NDArray[np.float32]
    """float32 [H, W] at the image's own resolution."""
    mask: NDArray[np.bool_]
    """bool [H, W]."""
    verdict: str
    image_score: float | None = None
    """What decides about the image as a whole; None where that is the highest pixel."""
    answer: str | None = None
    """What the model said, where its mode has it speak; ``ANCHORS_SHOWN`` stands in it for the anchors."""


class Predictor(Protocol):
    """A model that segments files.

    It may also have ``operating_point``: what makes its masks, in words, for the head of the page. One that can be told how a good part
    looks (describe-plus) takes ``normal_look`` in ``predict``; it is given only where there is such a sentence.
    """

    name: str
    identity: str
    """Changes whenever its answers may: name and hash."""

    def predict(
        self, path: Path
    ) -> (
        tuple[NDArray[np.float32], NDArray[np.bool_], str]
        | tuple[NDArray[np.float32], NDArray[np.bool_], str, float | None]
        | tuple[NDArray[np.float32], NDArray[np.bool_], str, float | None, str | None]
    ):
        """Score map, mask and verdict; the image's score where it is not the highest pixel of the map; the answer where there is one.

        Raises:
            UnlikeError: the image is not of the product.
            ImageError: there is no verdict on this image.
        """
        ...


class Listener(Predictor, Protocol):
    """A predictor that can be asked in words about an image in memory."""

    def reply(
        self, image: NDArray[np.uint8], instruction: str | None = None, mode: str = "direct", zero_anchors: bool = False
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_], str | None, float]:
        """Score map float32 [H, W] and mask bool [H, W], the answer where there is one in words, and how sure it is that there is
        something to segment, 0 to 1.

        Args:
            image: uint8 RGB [H, W, 3].
            instruction: None for the mode's own.
            mode: of ``contract.prompts.Mode``.
            zero_anchors: zeros take the place of the anchors' states, so that no word reaches the decoder.

        Raises:
            ImageError: there is no verdict on this image.
            UsageError: an invalid mode or instruction.
        """
        ...


class Scored(NamedTuple):
    """What a source gives for one item."""

    score_map: NDArray[np.float32]
    """float32 [h, w]."""
    mask: NDArray[np.bool_] | None
    """The source's own, bool [h, w]; None where it has none."""
    image_score: float | None = None
    """See ``Prediction``."""
    answer: str | None = None
    """See ``Prediction``."""


class MapSource(Protocol):
    """Score maps by item; goes to other processes by pickling."""

    @property
    def identity(self) -> str:
        """What the result calls it."""
        ...

    def fingerprint(self, item: Item) -> str:
        """Changes whenever the item's map does."""
        ...

    def read(self, item: Item) -> Scored:
        """The item's map, mask and score.

        Raises:
            UnlikeError: the image is not of the source's product.
            ImageError: there is no usable map for this item.
        """
        ...


_opened: dict[tuple[object, ...], Predictor] = {}


@dataclass(frozen=True)
class Model:
    """Maps made by a model, which is opened at its first use, once in every process."""

    opener: Callable[..., Predictor]
    model: str
    options: dict[str, Any] = field(default_factory=dict)
    normal_looks: dict[str, str] = field(default_factory=dict)
    """How a good part looks, by category, for describe-plus."""

    @property
    def predictor(self) -> Predictor:
        """The opened model.

        Raises:
            UsageError: it does not take one of the options.
        """
        if self._key not in _opened:
            _opened[self._key] = self._open()
        return _opened[self._key]

    def _open(self) -> Predictor:
        parameters = inspect.signature(self.opener).parameters.values()
        if not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters):
            known = {each.name for each in parameters}
            if foreign := sorted(self.options.keys() - known):
                raise UsageError(
                    f"{self.opener.__module__} opens models without {foreign[0]}: leave out --{foreign[0].replace('_', '-')}, or name "
                    "another --predictor"
                )
        return self.opener(self.model, **self.options)

    def close(self) -> None:
        """Forgets the opened model, in this process."""
        _opened.pop(self._key, None)

    @property
    def _key(self) -> tuple[object, ...]:
        return (self.opener, self.model, repr(sorted(self.options.items())))

    @property
    def listener(self) -> Listener:
        """The opened model, where it can be asked in words.

        Raises:
            UsageError: it cannot.
        """
        predictor = self.predictor
        if not callable(getattr(predictor, "reply", None)):
            raise UsageError(
                f"{self.model} ({type(predictor).__name__}) has no reply(), so it cannot be asked in words: --grounding needs a "
                "predictor that has one, as bundle does"
            )
        return cast(Listener, predictor)

    @property
    def identity(self) -> str:
        """The model's own, with what it was asked."""
        return self.predictor.identity

    def fingerprint(self, item: Item) -> str:
        """The same for every item; the image's own hash is added elsewhere."""
        look = self.normal_looks.get(item.category)
        return f"{self.identity} {sorted(self.options.items())}" + ("" if look is None else f" {look}")

    @property
    def operating_point(self) -> str | None:
        """What makes the model's own masks, in words; None where it does not say."""
        words = getattr(self.predictor, "operating_point", None)
        return None if words is None else str(words)

    def read(self, item: Item) -> Scored:
        """Asks the model."""
        look = self.normal_looks.get(item.category)
        predict: Callable[..., tuple[Any, ...]] = self.predictor.predict
        said = Prediction(*(predict(item.image_path) if look is None else predict(item.image_path, normal_look=look)))
        if not np.isfinite(said.score_map).all() or not np.isfinite(said.image_score or 0.0):
            raise ImageError(f"{item.name}: {self.identity} gave values that are NaN or infinite")
        return Scored(said.score_map, said.mask, said.image_score, said.answer)


def find_opener(name: str = "bundle") -> Callable[..., Predictor]:
    """The function that opens models of that sort.

    Raises:
        UsageError: it is not registered.
        SetupError: nothing is registered.
    """
    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    if not found:
        raise SetupError(f"no installed package can open a model (group {GROUP}): pip install --force-reinstall agvas")
    if name not in found:
        raise UsageError(f"--predictor is {name!r}; installed are {', '.join(sorted(found))}")
    opener: Callable[..., Predictor] = found[name].load()
    return opener


# Score maps of another program: files paired with images by name.
#
#     DIR/[SET/]bottle/test/broken/000.npy     for the image bottle/test/broken/000.png of the set
#
# float npy or tiff as they are, 16-bit png or tiff as value / 65535. Maps of 8 bits are refused: their 256 steps tie most pixels,
# which changes every ranking metric.


SUFFIXES = (".npy", ".tif", ".tiff", ".png")
LISTED = 10
ASPECT_LEAST = 0.1  # log of the ratio of sides: an image with a tenth more width than height can be told from its transpose
ASPECT_MOST = 0.03


@dataclass(frozen=True)
class MapFiles:
    """Maps of one set as files; satisfies ``predictor.MapSource``."""

    folder: Path
    paths: dict[str, Path] = field(repr=False)
    """Name of the item -> file."""

    @property
    def identity(self) -> str:
        """What the result calls it."""
        return f"predictions in {self.folder.name}"

    def fingerprint(self, item: Item) -> str:
        """Changes whenever the map does."""
        return sha256_of(self.paths[item.name])

    def read(self, item: Item) -> Scored:
        """Map [h, w]; there is no mask of its own."""
        return Scored(read_map(self.paths[item.name]), None)


def pair_predictions(folder: Path, data: DataSet) -> MapFiles:
    """Finds the map of every image of a set, below ``folder``/SET where that exists.

    Raises:
        UsageError: no such folder, maps are missing, or one image has two.
    """
    if not folder.is_dir():
        raise UsageError(
            f"{folder} is {'a file' if folder.exists() else 'not there'}; --predictions takes a folder of score maps"
        )
    root = folder / data.name if (folder / data.name).is_dir() else folder
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            by_stem[path.relative_to(root).with_suffix("").as_posix()].append(path)
    paths: dict[str, Path] = {}
    missing = []
    of_stem: dict[str, str] = {}
    for item in data.items:
        stem = PurePosixPath(item.name).with_suffix("").as_posix()
        if stem in of_stem:
            raise UsageError(f"{of_stem[stem]} and {item.name} pair with the same map {stem}: rename one of the images")
        of_stem[stem] = item.name
        found = by_stem.get(stem, [])
        if len(found) > 1:
            raise UsageError(f"{item.name} has two maps, {found[0]} and {found[1].name}: remove one")
        if found:
            paths[item.name] = found[0]
        else:
            missing.append(stem)
    if missing:
        listed = "".join(f"\n  {stem}" for stem in missing[:LISTED])
        more = f"\n  and {len(missing) - LISTED} more" if len(missing) > LISTED else ""
        raise UsageError(
            f"{root} lacks the maps of {len(missing)} of the {len(data.items)} images of {data.name}; an image NAME.png needs "
            f"NAME.npy, .tiff or .png at the same place below it:{listed}{more}"
        )
    return MapFiles(folder, paths)


def read_map(path: Path) -> NDArray[np.float32]:
    """One score map, float32 [h, w].

    Raises:
        UsageError: it has 8 bits or other whole numbers; that will not be otherwise in the next file, so nothing more is read.
        ImageError: it cannot be read, is not of two dimensions or of one page, or holds values that are not finite.
    """
    raw = _raw(path).squeeze()
    if raw.ndim != 2:
        raise ImageError(f"{path} has shape {raw.shape}; a score map has two dimensions, height and width: save one map a file")
    if raw.dtype == np.uint16:
        return np.asarray(raw / 65535.0, np.float32)
    if raw.dtype.kind != "f":
        raise UsageError(
            f"{path} holds {raw.dtype}, {_why_not(raw.dtype)}: save the scores as float npy or tiff, or as 16-bit png"
        )
    scores = raw.astype(np.float32)
    if not np.isfinite(scores).all():
        raise ImageError(f"{path} holds {np.count_nonzero(~np.isfinite(scores))} values that are NaN or infinite")
    return scores


def _why_not(dtype: np.dtype[Any]) -> str:
    if dtype == np.bool_:
        return "which is a mask and ranks nothing"
    if dtype.itemsize == 1:
        return "8 bits, whose 256 steps tie most pixels, which changes every ranking metric"
    if dtype.kind in "iu":
        return f"whole numbers of {dtype.itemsize * 8} bits, whose full scale is unknown"
    return "which are no scores"


def check_upright(shape: tuple[int, ...], size: tuple[int, int], name: str) -> None:
    """Raises ImageError where a map of ``shape`` [h, w] has width and height of its image, ``size`` (H, W), in each other's place.

    A map may be smaller than its image; it is then resized. One that was transposed would be resized as well, and score as noise.
    """
    (h, w), (height, width) = shape[:2], size
    as_image, turned = (h * width) / (w * height), (h * height) / (w * width)
    if abs(np.log(as_image)) > ASPECT_LEAST and abs(np.log(turned)) < ASPECT_MOST:
        raise ImageError(f"{name} is {width}x{height} px and its map {w}x{h}: the map is transposed; save it as [height, width]")


def _raw(path: Path) -> NDArray[Any]:
    if path.suffix.lower() != ".npy":
        data = path.read_bytes() if path.is_file() else b""
        try:
            header = check_header(data)
            if header.pages > 1:
                raise ImageError(f"has {header.pages} pages; a score map has one: save one map a file")
            return np.asarray(decode_samples(data, header).pixels)
        except ImageError as error:
            raise ImageError(f"{path} {error}") from error
    try:
        # No pickle: a file of maps may come from anybody.
        return np.asarray(np.load(path, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise ImageError(f"{path} cannot be read ({str(error).strip()})") from error
