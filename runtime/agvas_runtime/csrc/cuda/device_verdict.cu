#include "device_verdict.h"

#include <algorithm>
#include <climits>
#include <stdexcept>

#include "check.h"
#include "device_memory.h"
#include "score_pixel.h"

namespace agvas {
namespace {

constexpr int kThreads = 256;

// Scores are never negative, and such floats are ordered as integers are.
__device__ void raise_to(float* at, float value) { atomicMax(reinterpret_cast<int*>(at), __float_as_int(value)); }

__global__ void clear_kernel(const DeviceTile* tiles, int count, DeviceRegions* summary, DeviceRegion* regions, int max_regions) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i == 0) {
    double accept = 0.0, best = 0.0;
    int broken = 0, asked = 0;
    for (int k = 0; k < count; ++k) {
      const DeviceTile& tile = tiles[k];
      if (tile.answer == nullptr) continue;
      const float against = tile.refusal == nullptr ? 0.0f : *tile.refusal;
      const double here = acceptance(*tile.answer, against);
      broken |= !isfinite(*tile.answer) || !isfinite(against);
      asked = 1;
      best = here > best ? here : best;
      if (k + 1 == count || tiles[k + 1].look != tile.look) {
        accept += static_cast<double>(tile.part.share) * best;
        best = 0.0;
      }
    }
    *summary = {0, 0, 0, broken, 0.0f, asked ? accept : 1.0};
  }
  if (i < max_regions) regions[i] = {INT_MAX, INT_MAX, INT_MAX, 0, 0, 0, 0, 0, 0.0, 0.0f, 0};
}

// A block's second index is the tile. `rel` of its part is our own memory.
__global__ void relate_kernel(const DeviceTile* tiles, const ScorePart* parts, DeviceRegions* summary) {
  const DeviceTile& tile = tiles[blockIdx.y];
  const ScorePart& part = parts[blockIdx.y];
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= part.cells_high * part.cells_wide) return;
  const int64_t at = static_cast<int64_t>(i / part.cells_wide) * part.stride + i % part.cells_wide;
  const float ano = tile.ano[at], nor = tile.nor[at];
  const_cast<float*>(part.rel)[at] = ano - nor;
  if (!isfinite(ano) || !isfinite(nor) || !isfinite(part.seg[at])) summary->broken = 1;
}

__global__ void score_kernel(const ScorePart* parts, int count, float alpha, float rest, const DeviceRule* rule, int height,
                             int width, float* score, int* labels, DeviceRegions* summary) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= height * width) return;
  const float p = score_pixel(parts, count, alpha, rest, i / width, i % width);
  score[i] = p;
  labels[i] = p > rule->threshold ? i : -1;
  if (p > *static_cast<volatile float*>(&summary->score)) raise_to(&summary->score, p);  // few pixels are the highest so far
}

// The lower root wins; another thread may move one of them meanwhile, so again until it holds.
__device__ void join(int* labels, int a, int b) {
  for (;;) {
    a = find_root(labels, a);
    b = find_root(labels, b);
    if (a == b) return;
    if (a > b) {
      const int lower = b;
      b = a;
      a = lower;
    }
    const int before = atomicMin(labels + b, a);
    if (before == b) return;
    b = before;
  }
}

__global__ void join_kernel(int* labels, int height, int width) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= height * width || labels[i] < 0) return;
  const int x = i % width, above = i - width;
  if (x > 0 && labels[i - 1] >= 0) join(labels, i, i - 1);
  if (above < 0) return;
  if (labels[above] >= 0) join(labels, i, above);
  if (x > 0 && labels[above - 1] >= 0) join(labels, i, above - 1);
  if (x + 1 < width && labels[above + 1] >= 0) join(labels, i, above + 1);
}

__global__ void number_kernel(const int* labels, int* numbers, int pixels, int max_regions, DeviceRegions* summary) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= pixels || labels[i] != i) return;
  const int number = atomicAdd(&summary->count, 1);
  numbers[i] = number < max_regions ? number : -1;
  if (number >= max_regions) summary->overflow = 1;
}

__global__ void measure_kernel(const int* labels, const int* numbers, const float* score, int width, int pixels, DeviceRegion* regions) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= pixels || labels[i] < 0) return;
  const int root = find_root(labels, i), number = numbers[root], x = i % width, y = i / width;
  if (number < 0) return;
  DeviceRegion& region = regions[number];
  atomicMin(&region.first, i);
  atomicMin(&region.left, x);
  atomicMin(&region.top, y);
  atomicMax(&region.right, x + 1);
  atomicMax(&region.bottom, y + 1);
  atomicAdd(&region.area, 1u);
  atomicAdd(&region.sum_x, static_cast<unsigned long long>(x));
  atomicAdd(&region.sum_y, static_cast<unsigned long long>(y));
  atomicAdd(&region.sum_score, static_cast<double>(score[i]));
  raise_to(&region.max_score, score[i]);
}

__global__ void mask_kernel(const int* labels, const int* numbers, DeviceRegion* regions, const DeviceRule* rule, int pixels, uint8_t* mask,
                            DeviceRegions* summary) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= pixels) return;
  bool counts = false;
  if (labels[i] >= 0 && summary->accept >= rule->gate) {
    const int root = find_root(labels, i), number = numbers[root];
    // One beyond the room there is counts: too many regions are never a good part.
    counts = number < 0 || (regions[number].max_score > rule->seed && static_cast<double>(regions[number].area) >= rule->min_area);
    if (counts && i == root) {
      if (number >= 0) regions[number].counts = 1;
      atomicAdd(&summary->counting, 1);
    }
  }
  mask[i] = counts ? 1 : 0;
}

}  // namespace

struct DeviceVerdict::State {
  DeviceMemory memory;
  DeviceTile* tiles;
  ScorePart* parts;
  int *labels, *numbers;
  int count, most_cells, height, width, max_regions;
  float alpha, rest;
};

DeviceVerdict::DeviceVerdict(const std::vector<DeviceTile>& tiles, int height, int width, float alpha, float rest, int max_regions)
    : state_(new State{}) {
  if (tiles.empty() || height < 1 || width < 1 || static_cast<int64_t>(height) * width > INT_MAX || max_regions < 1)
    throw std::invalid_argument("a frame of this size, or so many regions, cannot be judged on a GPU");
  const size_t pixels = static_cast<size_t>(height) * width;
  std::vector<ScorePart> parts;
  for (const DeviceTile& tile : tiles) {
    ScorePart part = tile.part;
    if (part.cells_high < 1 || part.cells_wide < 1 || part.stride < part.cells_wide)
      throw std::invalid_argument("a tile without cells cannot be judged on a GPU");
    part.rel = state_->memory.allocate<float>(static_cast<size_t>(part.cells_high) * part.stride);
    state_->most_cells = std::max(state_->most_cells, part.cells_high * part.cells_wide);
    if (part.column_weight != nullptr) {
      part.row_weight = state_->memory.copy(std::vector<float>(part.row_weight, part.row_weight + part.height));
      part.column_weight = state_->memory.copy(std::vector<float>(part.column_weight, part.column_weight + part.width));
    }
    parts.push_back(part);
  }
  state_->tiles = state_->memory.copy(tiles);
  state_->parts = state_->memory.copy(parts);
  state_->labels = state_->memory.allocate<int>(pixels);
  state_->numbers = state_->memory.allocate<int>(pixels);
  state_->count = static_cast<int>(parts.size());
  state_->height = height, state_->width = width, state_->max_regions = max_regions;
  state_->alpha = alpha, state_->rest = rest;
}

DeviceVerdict::~DeviceVerdict() = default;

void DeviceVerdict::run(const DeviceRule* rule, float* score, uint8_t* mask, DeviceRegions* summary, DeviceRegion* regions,
                        void* stream) const {
  const State& s = *state_;
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  const int pixels = s.height * s.width, blocks = (pixels - 1) / kThreads + 1;
  const dim3 cells((s.most_cells - 1) / kThreads + 1, s.count);
  AGVAS_LAUNCH(clear_kernel, (s.max_regions - 1) / kThreads + 1, kThreads, on, s.tiles, s.count, summary, regions, s.max_regions);
  AGVAS_LAUNCH(relate_kernel, cells, kThreads, on, s.tiles, s.parts, summary);
  AGVAS_LAUNCH(score_kernel, blocks, kThreads, on, s.parts, s.count, s.alpha, s.rest, rule, s.height, s.width, score, s.labels, summary);
  AGVAS_LAUNCH(join_kernel, blocks, kThreads, on, s.labels, s.height, s.width);
  AGVAS_LAUNCH(number_kernel, blocks, kThreads, on, s.labels, s.numbers, pixels, s.max_regions, summary);
  AGVAS_LAUNCH(measure_kernel, blocks, kThreads, on, s.labels, s.numbers, score, s.width, pixels, regions);
  AGVAS_LAUNCH(mask_kernel, blocks, kThreads, on, s.labels, s.numbers, regions, rule, pixels, mask, summary);
  AGVAS_CHECK(cudaGetLastError());
}

}  // namespace agvas
