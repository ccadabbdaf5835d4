// The Python module agvas_runtime._native: arguments checked, the interpreter's lock let go, buffers of the caller filled.
// agvas_runtime/_native.pyi says what each function takes.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "row_kernels.h"
#include "thread_pool.h"
#include "verdict.h"
#include "views.h"

namespace nb = nanobind;

namespace agvas {

#ifdef AGVAS_CUDA
void bind_cuda(nb::module_& module);  // cuda/module_cuda.cpp
#endif

namespace {

using Map = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using ConstMap = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using ConstCells = nb::ndarray<const float, nb::ndim<2>, nb::device::cpu>;
using ConstLine = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<uint8_t, nb::c_contig, nb::device::cpu>;
using ConstBytes = nb::ndarray<const uint8_t, nb::device::cpu>;
using Mask = nb::ndarray<uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Table = nb::ndarray<const uint8_t, nb::shape<65536>, nb::c_contig, nb::device::cpu>;
using View = nb::ndarray<uint8_t, nb::ndim<3>, nb::c_contig, nb::device::cpu>;

void require(bool holds, const char* message) {
  if (!holds) throw std::invalid_argument(message);
}

template <class T>
T item(const nb::handle& sequence, size_t index) {
  return nb::cast<T>(sequence[index]);
}

// (seg, rel, (enlarged_high, enlarged_wide), (top, left, height, width), share, row_weight | None, column_weight | None)
ScorePart to_part(const nb::handle& given, int height, int width) {
  const auto seg = item<ConstCells>(given, 0), rel = item<ConstCells>(given, 1);
  const nb::object enlarged = given[2], place = given[3];
  ScorePart part{};
  part.seg = seg.data();
  part.rel = rel.data();
  part.cells_high = static_cast<int>(seg.shape(0));
  part.cells_wide = static_cast<int>(seg.shape(1));
  part.stride = seg.stride(0);
  part.enlarged_high = item<int>(enlarged, 0);
  part.enlarged_wide = item<int>(enlarged, 1);
  part.top = item<int>(place, 0);
  part.left = item<int>(place, 1);
  part.height = item<int>(place, 2);
  part.width = item<int>(place, 3);
  part.share = item<float>(given, 4);
  require(seg.size() > 0 && rel.shape(0) == seg.shape(0) && rel.shape(1) == seg.shape(1), "seg and rel differ in shape, or are empty");
  require((part.cells_wide == 1 || (seg.stride(1) == 1 && rel.stride(1) == 1)) && rel.stride(0) == seg.stride(0),
          "rows of seg and rel lie differently in memory, or not in one piece");
  require(part.top >= 0 && part.left >= 0 && part.height > 0 && part.width > 0 && part.top + part.height <= height &&
              part.left + part.width <= width,
          "a part leaves the frame");
  require(part.enlarged_high >= part.height && part.enlarged_wide >= part.width, "a part is enlarged to less than its tile");
  const nb::object rows = given[5], columns = given[6];
  require(rows.is_none() == columns.is_none(), "a part has weights along one axis only");
  if (!rows.is_none()) {
    const auto row_weight = nb::cast<ConstLine>(rows), column_weight = nb::cast<ConstLine>(columns);
    require(static_cast<int>(row_weight.shape(0)) == part.height && static_cast<int>(column_weight.shape(0)) == part.width,
            "a part's weights have another length than its tile");
    part.row_weight = row_weight.data();
    part.column_weight = column_weight.data();
  }
  return part;  // the caller's tuple keeps the arrays alive
}

// (threshold, seed, min_area, open)
Rule to_rule(const nb::handle& given) {
  return {item<float>(given, 0), item<float>(given, 1), item<double>(given, 2), item<bool>(given, 3)};
}

// (score, [(box, area, centroid, mean, max, (length, breadth), inside), ...])
nb::tuple to_python(Verdict&& verdict) {
  nb::list regions;
  for (size_t i = 0; i < verdict.regions.size(); ++i) {
    const Region& region = verdict.regions[i];
    auto* inside = new std::vector<uint8_t>(std::move(verdict.insides[i]));
    nb::capsule owner(inside, [](void* held) noexcept { delete static_cast<std::vector<uint8_t>*>(held); });
    const nb::ndarray<nb::numpy, uint8_t, nb::ndim<2>> pixels(
        inside->data(), {static_cast<size_t>(region.height), static_cast<size_t>(region.width)}, owner);
    const double area = static_cast<double>(region.area);
    regions.append(nb::make_tuple(nb::make_tuple(region.x, region.y, region.width, region.height), region.area,
                                  nb::make_tuple(region.sum_x / area, region.sum_y / area), region.sum_score / area, region.max_score,
                                  nb::make_tuple(region.length, region.breadth), pixels));
  }
  return nb::make_tuple(verdict.score, regions);
}

nb::tuple judge_parts(const nb::sequence& parts, float alpha, float rest, const nb::tuple& rule, Map score, Mask mask, int threads) {
  const int height = static_cast<int>(score.shape(0)), width = static_cast<int>(score.shape(1));
  require(height > 0 && width > 0 && mask.shape(0) == score.shape(0) && mask.shape(1) == score.shape(1), "mask and score map differ in size");
  std::vector<ScorePart> given;
  for (const nb::handle part : parts) given.push_back(to_part(part, height, width));
  const Rule wanted = to_rule(rule);
  Verdict verdict;
  {
    nb::gil_scoped_release released;
    verdict = judge(ScoreMap(std::move(given), height, width, alpha, rest), wanted, score.data(), mask.data(), threads);
  }
  return to_python(std::move(verdict));
}

// P alone: what eval and the line's rules start from. Returns its highest value.
float score_map(const nb::sequence& parts, float alpha, float rest, Map score, int threads) {
  const int height = static_cast<int>(score.shape(0)), width = static_cast<int>(score.shape(1));
  std::vector<ScorePart> given;
  for (const nb::handle part : parts) given.push_back(to_part(part, height, width));
  nb::gil_scoped_release released;
  return fill_score_map(ScoreMap(std::move(given), height, width, alpha, rest), score.data(), threads);
}

nb::tuple judge_map(ConstMap score, const nb::tuple& rule, Mask mask, int threads) {
  const int height = static_cast<int>(score.shape(0)), width = static_cast<int>(score.shape(1));
  require(height > 0 && width > 0 && mask.shape(0) == score.shape(0) && mask.shape(1) == score.shape(1), "mask and score map differ in size");
  const Rule wanted = to_rule(rule);
  Verdict verdict;
  {
    nb::gil_scoped_release released;
    verdict = judge(score.data(), height, width, wanted, mask.data(), threads);
  }
  return to_python(std::move(verdict));
}

PixelFormat to_format(const std::string& name) {
  const char* const names[] = {"Mono8", "Mono16", "BayerRG8", "BayerGB8", "NV12", "YUYV", "RGB8", "BGR8"};
  for (int i = 0; i < 8; ++i)
    if (name == names[i]) return static_cast<PixelFormat>(i);
  throw std::invalid_argument("pixel format " + name + " is not known; Mono8, Mono16, BayerRG8, BayerGB8, NV12, YUYV, RGB8 and BGR8 are");
}

// frame: bytes [rows, bytes of a row], rows apart by any stride. plan: (out [H, W, 3], content_high, content_wide, padding)
void views(ConstBytes frame, const std::string& format, int height, int width, const nb::tuple& crop, const nb::sequence& plans,
           const nb::object& rgb, const nb::object& table, int threads) {
  CameraFrame camera{frame.data(), to_format(format), height, width, static_cast<ptrdiff_t>(frame.stride(0))};
  const int per_pixel = camera.format == PixelFormat::RGB8 || camera.format == PixelFormat::BGR8 ? 3
                        : camera.format == PixelFormat::Mono16 || camera.format == PixelFormat::YUYV ? 2 : 1;
  require(frame.ndim() == 2 && frame.stride(1) == 1 && static_cast<int>(frame.shape(1)) >= per_pixel * width,
          "the frame's rows are shorter than its width, or not in one piece");
  require(static_cast<int>(frame.shape(0)) >= (camera.format == PixelFormat::NV12 ? height + height / 2 : height),
          "the frame has fewer rows than its height needs");
  if (camera.format == PixelFormat::Mono16) {
    require(!table.is_none(), "Mono16 needs a table");
    camera.table = nb::cast<Table>(table).data();
  }
  const Crop wanted{item<int>(crop, 0), item<int>(crop, 1), item<int>(crop, 2), item<int>(crop, 3)};
  std::vector<ViewPlan> given;
  for (const nb::handle plan : plans) {
    View out;  // not converted: a copy would be filled in its place
    require(nb::try_cast(nb::object(plan[0]), out, false) && out.shape(2) == 3, "a view is not a uint8 array [H, W, 3] in one piece");
    ViewPlan made{};
    made.high = static_cast<int>(out.shape(0));
    made.wide = static_cast<int>(out.shape(1));
    made.content_high = item<int>(plan, 1);
    made.content_wide = item<int>(plan, 2);
    require(made.content_high <= made.high && made.content_wide <= made.wide, "a view's content is larger than the view");
    for (size_t c = 0; c < 3; ++c) made.padding[c] = item<uint8_t>(plan[3], c);
    made.out = out.data();
    given.push_back(made);
  }
  uint8_t* copy = nullptr;
  if (!rgb.is_none()) {
    const auto whole = nb::cast<Bytes>(rgb);
    require(whole.size() == static_cast<size_t>(wanted.height) * wanted.width * 3, "rgb is not of the crop's size");
    copy = whole.data();
  }
  nb::gil_scoped_release released;
  make_views(camera, wanted, given.data(), static_cast<int>(given.size()), copy, threads);
}

}  // namespace
}  // namespace agvas

NB_MODULE(_native, m) {
  using namespace agvas;
  nb::set_leak_warnings(false);  // the interpreter may end while a generator of results still holds an array
  m.attr("CUDA") = AGVAS_CUDA_TEXT;
  m.def("instructions", [] { return std::string(row_kernels().name); });
  m.def("use_instructions", [](const std::string& name) { return use_row_kernels(name.c_str()); }, nb::arg("name"));
  m.def("cores", &cores);
  m.def("judge_parts", &judge_parts, nb::arg("parts"), nb::arg("alpha"), nb::arg("rest"), nb::arg("rule"),
        nb::arg("score_map").noconvert(), nb::arg("mask").noconvert(), nb::arg("threads") = 0);
  m.def("score_map", &score_map, nb::arg("parts"), nb::arg("alpha"), nb::arg("rest"), nb::arg("score_map").noconvert(),
        nb::arg("threads") = 0);
  m.def("judge_map", &judge_map, nb::arg("score_map").noconvert(), nb::arg("rule"), nb::arg("mask").noconvert(),
        nb::arg("threads") = 0);
  m.def("make_views", &views, nb::arg("frame").noconvert(), nb::arg("format"), nb::arg("height"), nb::arg("width"), nb::arg("crop"),
        nb::arg("plans"), nb::arg("rgb").none() = nb::none(), nb::arg("table").none() = nb::none(), nb::arg("threads") = 0);
#ifdef AGVAS_CUDA
  bind_cuda(m);
#endif
}
