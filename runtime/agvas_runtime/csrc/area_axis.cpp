#include "area_axis.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

namespace agvas {
namespace {

Axis area_axis(int from, int to, bool whole) {
  Axis axis;
  const double scale = 1.0 / (static_cast<double>(to) / from);
  std::vector<std::vector<float>> all;
  for (int cell = 0; cell < to; ++cell) {
    std::vector<float> weights;
    int first = cell * (from / to);
    if (whole) {  // a whole number of pixels: sums first, one division at the end
      weights.assign(from / to, 1.0f);
    } else {
      const double begin = cell * scale, end = begin + scale;
      const double span = std::min(scale, from - begin);
      const int last = std::min(static_cast<int>(std::floor(end)), from - 1);
      const int inner = std::min(static_cast<int>(std::ceil(begin)), last);
      first = inner;
      if (inner - begin > 1e-3) {
        first = inner - 1;
        weights.push_back(static_cast<float>((inner - begin) / span));
      }
      weights.insert(weights.end(), static_cast<size_t>(last - inner), static_cast<float>(1.0 / span));
      if (end - last > 1e-3) weights.push_back(static_cast<float>(std::min(std::min(end - last, 1.0), span) / span));
    }
    axis.first.push_back(first);
    axis.count.push_back(static_cast<int32_t>(weights.size()));
    axis.taps = std::max(axis.taps, axis.count.back());
    all.push_back(std::move(weights));
  }
  for (std::vector<float>& weights : all) {
    weights.resize(axis.taps, 0.0f);
    axis.weight.insert(axis.weight.end(), weights.begin(), weights.end());
  }
  return axis;
}

}  // namespace

ViewAxes::ViewAxes(const ViewPlan& plan, const Crop& crop) {
  if (plan.content_high > crop.height || plan.content_wide > crop.width || plan.content_high < 1 || plan.content_wide < 1)
    throw std::invalid_argument("a view of " + std::to_string(plan.content_wide) + "x" + std::to_string(plan.content_high) +
                                " px from " + std::to_string(crop.width) + "x" + std::to_string(crop.height) +
                                " px enlarges; only shrinking is done here");
  const bool whole = crop.height % plan.content_high == 0 && crop.width % plan.content_wide == 0;
  columns = area_axis(crop.width, plan.content_wide, whole);
  rows = area_axis(crop.height, plan.content_high, whole);
  const int pixels = (crop.height / plan.content_high) * (crop.width / plan.content_wide);
  if (whole) scale = 1.0f / static_cast<float>(pixels);
  up = whole && crop.height / plan.content_high == 2 && crop.width / plan.content_wide == 2;
}

}  // namespace agvas
