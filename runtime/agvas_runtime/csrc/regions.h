// From a score map to a mask and its regions: the rule of agvas_core/contract/decision.py.
//
//     RunFinder finder(P, height, width, rule.threshold);
//     finder.rows(top, bottom, peaks);                  // bands, from any thread; band after band must not overlap
//     std::vector<Region> regions = finder.regions(rule, mask, ...);
//
// A region is what lies above `threshold` and hangs together, corners included; it counts where it exceeds `seed` somewhere and has
// `min_area` pixels. Coordinates are of pixel centres.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace agvas {

struct Rule {
  float threshold = 0.5f;
  float seed = 0.5f;
  double min_area = 0.0;  // pixels
  bool open = true;       // false: the language model refused, and no region counts
};

struct Region {
  int64_t area = 0;
  int x = 0, y = 0, width = 0, height = 0;
  double sum_x = 0, sum_y = 0;  // centroid times area
  double sum_score = 0;
  float max_score = 0;
  double length = 0, breadth = 0;  // sides of the tightest rectangle around it, at any angle; one pixel is 1 long and 1 broad
};

// A stretch of one row above the threshold.
struct Run {
  int y, begin, end;
  double sum;
  float peak;
};

class RunFinder {
 public:
  RunFinder(const float* score, int height, int width, float threshold);

  // Finds the runs of rows [top, bottom). `peaks` [bottom - top], where known, lets rows without one be passed over.
  void rows(int top, int bottom, const float* peaks);

  // Regions that count, in the order of their first pixel. `mask` uint8 [height, width] must be zero and gets ones. The runs of region
  // i are those with `label_of_run()[r] == i + 1`.
  std::vector<Region> regions(const Rule& rule, uint8_t* mask);

  const std::vector<Run>& runs() const { return runs_; }
  const std::vector<int32_t>& label_of_run() const { return labels_; }

 private:
  const float* score_;
  int height_, width_;
  float threshold_;
  std::vector<std::vector<Run>> by_row_;
  std::vector<Run> runs_;
  std::vector<int32_t> labels_;
};

}  // namespace agvas
