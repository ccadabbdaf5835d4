// From logits to a verdict on a GPU: P, mask and regions, for one size of frame.
//
//     DeviceVerdict verdict(parts, height, width, alpha, rest, max_regions);    // allocates, copies, waits
//     verdict.run(rule, roi, P, mask, regions, stream);                         // neither allocates nor waits; may be captured
//
// All pointers are the device's. Regions come in any order; sort them by `first`. One thread at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "regions.h"
#include "score_map.h"

namespace agvas {

struct DeviceRegion {
  int first;               // index of its first pixel
  int left, top, right, bottom;  // right and bottom excluded
  unsigned int area;
  unsigned long long sum_x, sum_y;
  double sum_score;
  float max_score;
  int counts;  // 1 where the rule has it count
};

struct DeviceRegions {
  int count;     // of those above the threshold, the rule aside
  int overflow;  // 1 where there were more than max_regions: no verdict can be given, run again with room for more
  float score;   // highest of P
};

class DeviceVerdict {
 public:
  // Pointers in `parts` are the device's and stay where they are.
  DeviceVerdict(const std::vector<ScorePart>& parts, int height, int width, float alpha, float rest, int max_regions);
  ~DeviceVerdict();

  // `summary`: one; `regions`: max_regions; `mask` and `roi` (or null): uint8 [height, width]; `score`: float32 [height, width].
  void run(const Rule& rule, const uint8_t* roi, float* score, uint8_t* mask, DeviceRegions* summary, DeviceRegion* regions,
           void* stream) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace agvas
