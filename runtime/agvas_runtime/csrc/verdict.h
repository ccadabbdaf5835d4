// From mask logits to a verdict, in one pass over the frame: P, mask and regions.
//
//     Verdict verdict = judge(ScoreMap(...), rule, P, mask, threads);
//
// The caller owns P (float32) and mask (uint8), both [height, width]. Thread-safe.
#pragma once

#include "regions.h"
#include "score_map.h"

namespace agvas {

struct Verdict {
  float score = 0.0f;  // highest of P
  std::vector<Region> regions;
  std::vector<std::vector<uint8_t>> insides;  // of each region's box [height, width]: 1 where it is the region
};

Verdict judge(const ScoreMap& map, const Rule& rule, float* score, uint8_t* mask, int threads);

// The same where P is there already.
Verdict judge(const float* score, int height, int width, const Rule& rule, uint8_t* mask, int threads);

// P alone; returns its highest value.
float fill_score_map(const ScoreMap& map, float* score, int threads);

}  // namespace agvas
