"""The plan of a build: graphs, shapes, precision, folder, estimated time."""

from dataclasses import dataclass
from pathlib import Path

from agvas_core.contract.engine import parse_version
from agvas_core.contract.errors import UsageError
from agvas_core.contract.manifest import MANIFEST_NAME, GraphSpec, Manifest, read_manifest, verify_files
from agvas_core.contract.product import Product, head_spec, read_product
from agvas_export.trt.precision import BUILDER_PRECISIONS, FLOAT8_SINCE, graph_precision
from agvas_export.trt.recipe import Recipe
from agvas_export.trt.shapes import Shapes, profile_shapes

__all__ = ["STAGES", "Plan", "Step", "find_folder", "graphs_of", "make_plan"]

STAGES = ("vision", "lmm", "decoder", "references", "head")


@dataclass(frozen=True)
class Step:
    """One engine."""

    stage: str
    graph: Path
    megabytes: float
    shapes: Shapes


@dataclass(frozen=True)
class Plan:
    """All that a build needs to know."""

    bundle: Path
    manifest: Manifest
    recipe: Recipe
    precision: str
    max_batch: int
    steps: tuple[Step, ...]

    def lines(self) -> list[str]:
        """For people."""
        recipe = self.recipe
        found = [
            f"bundle      {self.manifest.name}, {self.bundle}",
            f"target      {recipe.name}: compute capability {recipe.compute_capability}, {recipe.flavour} {recipe.min_version} or later",
            f"precision   {self.precision}",
            f"workspace   {recipe.workspace_mb} MB, optimisation level {recipe.optimization_level}",
            f"time        about {recipe.minutes:g} minutes for a model as small as nano (a guess; a timing cache makes the next build shorter)",
        ]
        for step in self.steps:
            found.append(f"\n{step.stage}  {step.graph.name}, {step.megabytes:.1f} MB")
            for name, (least, usual, largest) in step.shapes.items():
                shown = [" x ".join(map(str, shape)) or "scalar" for shape in (least, usual, largest)]
                found.append(
                    f"  {name:<18}{shown[0]}" + ("" if shown[0] == shown[1] == shown[2] else f"  ..  {shown[1]}  ..  {shown[2]}")
                )
        if recipe.note:
            found.append(f"\n{recipe.note}")
        return found


def make_plan(
    bundle: Path, recipe: Recipe, *, precision: str | None, stages: tuple[str, ...] | None = None, max_batch: int | None = None
) -> Plan:
    """Verifies the bundle and plans its engines.

    Args:
        precision: as exported where None.
        stages: all that the bundle, or the product, has a graph of where None.

    Raises:
        BundleError: the bundle is not whole.
        UsageError: a precision that its graphs do not have, no such stage, or no graph of it.
    """
    manifest = read_manifest(bundle)
    verify_files(bundle, manifest)
    product = None if manifest.product is None else read_product(bundle, manifest.product)
    specs = graphs_of(manifest, product)
    present = tuple(specs)
    stages = stages or present
    if unknown := [stage for stage in stages if stage not in STAGES]:
        raise UsageError(f"there is no stage {unknown[0]!r}: they are {', '.join(STAGES)}")
    if absent := [stage for stage in stages if stage not in present]:
        raise UsageError(f"{bundle} has no graph of the stage {absent[0]}: it has {', '.join(present)}")
    exported = graph_precision(bundle / manifest.vision.file)
    wanted = precision or exported
    if wanted != exported and wanted not in BUILDER_PRECISIONS:
        raise UsageError(
            f"the graphs of {bundle} are {exported}, and a strongly typed engine has the precision of its graph: export the bundle in {wanted}, or "
            f"choose {exported}, {' or '.join(BUILDER_PRECISIONS)}"
        )
    if wanted in ("tf32", "fp8") and exported != "fp32":
        raise UsageError(f"{wanted} is for fp32 graphs, and those of {bundle} are {exported}: leave --precision out")
    if wanted == "fp8" and parse_version(recipe.compute_capability) < parse_version(FLOAT8_SINCE):
        raise UsageError(
            f"target {recipe.name} has compute capability {recipe.compute_capability}, and float8 needs {FLOAT8_SINCE}: choose int8 or "
            f"{exported}"
        )
    batch = max_batch or recipe.max_batch
    steps = []
    view = None if product is None else product.view
    for stage in stages:
        spec = specs[stage]
        graph = bundle / spec.file
        size = sum(path.stat().st_size for path in (graph, graph.with_name(f"{graph.name}.data")) if path.is_file())
        steps.append(Step(stage, graph, size / 1e6, profile_shapes(manifest, spec, batch, view)))
    return Plan(bundle, manifest, recipe, wanted, batch, tuple(steps))


def find_folder(bundle: str) -> Path:
    """The folder of a bundle, or of the one that ships under that name with the runtime.

    Raises:
        UsageError: neither.
    """
    folder = Path(bundle).expanduser()
    if folder.is_dir():
        return folder
    # By its place, not by import: the export knows no runtime.
    from importlib.util import find_spec

    spec = find_spec("agvas_runtime")
    for home in (spec.submodule_search_locations or []) if spec else []:
        shipped = Path(home) / "bundles" / bundle
        if (shipped / MANIFEST_NAME).is_file() and Path(bundle).name == bundle:
            return shipped
    if folder.is_file():
        raise UsageError(f"{bundle} is a file: unpack the bundle, for the certificate goes into its folder")
    raise UsageError(f"there is no bundle {bundle!r}: give the folder that agvas-export bundle wrote")


def graphs_of(manifest: Manifest, product: Product | None) -> dict[str, GraphSpec]:
    """The graphs that engines can be built of, by stage, in the order of ``STAGES``."""
    found = {name: graph for name, graph in manifest.graphs.items() if name in STAGES}
    if manifest.references is not None:
        found["references"] = manifest.references
        if product is not None and product.head is not None:
            found["head"] = head_spec(product.channels, manifest.references.stride)
    return found
