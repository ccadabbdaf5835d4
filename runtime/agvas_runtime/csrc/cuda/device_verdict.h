// From logits to a verdict on a GPU: acceptance, P, mask and regions, for one size of frame.
//
//     DeviceVerdict verdict(tiles, height, width, alpha, rest, max_regions);         // allocates, copies, waits
//     verdict.run(rule, P, mask, summary, regions, stream);                          // neither allocates nor waits; may be captured
//
// All pointers but those of tiles' weights are the device's, that of the rule too: a graph that was captured follows another rule when the memory says so. Regions come in
// any order; sort them by `first`. One thread at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "score_map.h"

namespace agvas {

// What the engines gave of one tile of one look. Tiles of a look stand together.
struct DeviceTile {
  int look;
  ScorePart part;    // `seg` is l_seg; `rel` is not read: it is made of the two below. The weights are the host's.
  const float* ano;  // l_ano and l_nor, laid out as l_seg
  const float* nor;
  const float* answer;   // logit of the answer's first word; null where acceptance is not asked
  const float* refusal;  // and of the refusal's; null: `answer` is the difference of the two
};

struct DeviceRule {
  float threshold, seed;
  double min_area;  // px
  double gate;      // least acceptance
};

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
  int count;      // of those above the threshold, the rule aside
  int counting;   // of those that the rule has count: the verdict
  int overflow;   // 1 where there were more than max_regions: those beyond count
  int broken;     // 1 where a logit is NaN or infinite: no verdict can be given
  float score;    // highest of P
  double accept;  // the language model's acceptance: the mean over the looks, by their share, of each look's highest; 1 where none was asked
};

// stages/whole_frame.py reads and writes them.
static_assert(sizeof(DeviceRule) == 24 && sizeof(DeviceRegions) == 32 && sizeof(DeviceRegion) == 56, "change it there, too");

class DeviceVerdict {
 public:
  // What the pointers of `tiles` point to on the device stays where it is.
  DeviceVerdict(const std::vector<DeviceTile>& tiles, int height, int width, float alpha, float rest, int max_regions);
  ~DeviceVerdict();

  // `summary`: one; `regions`: max_regions; `mask`: uint8 [height, width]; `score`: float32 [height, width].
  void run(const DeviceRule* rule, float* score, uint8_t* mask, DeviceRegions* summary, DeviceRegion* regions,
           void* stream) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace agvas
