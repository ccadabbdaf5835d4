// The tables of an antialiased resize, worked out once for a size of frame; on a GPU and a CPU the same.
//
//     ViewAxes axes(plan, crop);
//
// Thread-safe.
#pragma once

#include <cstdint>
#include <vector>

#include "row_kernels.h"
#include "views.h"

namespace agvas {

// Weights along one axis, in OpenCV's roundings (computeResizeAreaTab).
struct Axis {
  std::vector<int32_t> first, count;  // pixels of each cell
  std::vector<float> weight;          // [cells, taps], with zeros behind those of a cell that has fewer
  int taps = 0;
  AreaAxis view() const { return {first.data(), weight.data(), static_cast<int>(first.size()), taps}; }
};

struct ViewAxes {
  Axis rows, columns;
  float scale = 1.0f;  // of the sums
  bool up = false;     // halves are rounded upwards, as OpenCV has it where both sides are halved

  // Throws std::invalid_argument where the plan enlarges.
  ViewAxes(const ViewPlan& plan, const Crop& crop);
};

}  // namespace agvas
