// What the Python module has beyond the CPU's where it was built with CUDA. Pointers and streams are integers: whatever made them (cuda-bindings,
// pycuda, torch) can say what they are.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "device_verdict.h"
#include "device_views.h"

namespace nb = nanobind;

namespace agvas {
namespace {

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// (format, height, width, stride), (top, left, height, width), [(high, wide, content_high, content_wide, padding), ...]; for
// Mono16 the address of its table of 65536 bytes in the host's memory
DeviceViews* make_device_views(const nb::tuple& frame, const nb::tuple& crop, const nb::sequence& plans, uintptr_t table) {
  const auto number = [](const nb::handle& from, size_t index) { return nb::cast<int>(from[index]); };
  CameraFrame camera{nullptr, static_cast<PixelFormat>(number(frame, 0)), number(frame, 1), number(frame, 2), number(frame, 3)};
  camera.table = pointer<const uint8_t>(table);
  if ((camera.format == PixelFormat::Mono16) != (table != 0)) throw std::invalid_argument("Mono16, and no other format, is read by a table");
  std::vector<ViewPlan> given;
  for (const nb::handle plan : plans) {
    ViewPlan made{};
    made.high = number(plan, 0);
    made.wide = number(plan, 1);
    made.content_high = number(plan, 2);
    made.content_wide = number(plan, 3);
    for (size_t c = 0; c < 3; ++c) made.padding[c] = nb::cast<uint8_t>(plan[4][c]);
    given.push_back(made);
  }
  const Crop wanted{number(crop, 0), number(crop, 1), number(crop, 2), number(crop, 3)};
  return new DeviceViews(camera, wanted, given.data(), static_cast<int>(given.size()));
}

// [(look, (nor, ano, seg), (answer, refusal), (cells_high, cells_wide, stride), (enlarged_high, enlarged_wide), (top, left, height, width), share,
//   (row_weight, column_weight)), ...]
std::vector<DeviceTile> to_tiles(const nb::sequence& tiles) {
  std::vector<DeviceTile> given;
  for (const nb::handle tile : tiles) {
    const auto number = [&](size_t group, size_t index) { return nb::cast<int>(tile[group][index]); };
    const auto floats = [&](size_t group, size_t index) { return pointer<const float>(nb::cast<uintptr_t>(tile[group][index])); };
    const ScorePart part{floats(1, 2), nullptr, number(3, 0), number(3, 1), number(3, 2), number(4, 0), number(4, 1), number(5, 0), number(5, 1),
                         number(5, 2), number(5, 3), nb::cast<float>(tile[6]), floats(7, 0), floats(7, 1)};
    given.push_back({nb::cast<int>(tile[0]), part, floats(1, 1), floats(1, 0), floats(2, 0), floats(2, 1)});
  }
  return given;
}

int devices() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return count;
}

}  // namespace

void bind_cuda(nb::module_& module) {
  module.def("cuda_devices", &devices);
  nb::class_<DeviceViews>(module, "CudaViews")
      .def(nb::new_(&make_device_views), nb::arg("frame"), nb::arg("crop"), nb::arg("plans"), nb::arg("table") = 0)
      .def("run",
           [](const DeviceViews& views, uintptr_t frame, const nb::sequence& outputs, uintptr_t stream) {
             std::vector<uint8_t*> given;
             for (const nb::handle output : outputs) given.push_back(pointer<uint8_t>(nb::cast<uintptr_t>(output)));
             if (static_cast<int>(given.size()) != views.count()) throw std::invalid_argument("one output for each view is needed");
             views.run(pointer<const uint8_t>(frame), given.data(), pointer<void>(stream));
           },
           nb::arg("frame"), nb::arg("outputs"), nb::arg("stream"));
  nb::class_<DeviceVerdict>(module, "CudaVerdict")
      .def("__init__",
           [](DeviceVerdict* self, const nb::sequence& tiles, int height, int width, float alpha, float rest, int max_regions) {
             new (self) DeviceVerdict(to_tiles(tiles), height, width, alpha, rest, max_regions);
           },
           nb::arg("tiles"), nb::arg("height"), nb::arg("width"), nb::arg("alpha"), nb::arg("rest"), nb::arg("max_regions"))
      .def("run",
           [](const DeviceVerdict& verdict, uintptr_t rule, uintptr_t score, uintptr_t mask, uintptr_t summary, uintptr_t regions,
              uintptr_t stream) {
             verdict.run(pointer<const DeviceRule>(rule), pointer<float>(score), pointer<uint8_t>(mask),
                         pointer<DeviceRegions>(summary), pointer<DeviceRegion>(regions), pointer<void>(stream));
           },
           nb::arg("rule"), nb::arg("score_map"), nb::arg("mask"), nb::arg("summary"), nb::arg("regions"), nb::arg("stream"));
  module.attr("CUDA_RULE_BYTES") = sizeof(DeviceRule);
  module.attr("CUDA_REGION_BYTES") = sizeof(DeviceRegion);
  module.attr("CUDA_SUMMARY_BYTES") = sizeof(DeviceRegions);
}

}  // namespace agvas
