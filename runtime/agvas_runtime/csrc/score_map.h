// From mask logits to the score map P: enlarge, weigh and add up all looks at a frame, then eq. 7 and 8, row by row.
//
//     ScoreMap map(parts, height, width, alpha);
//     float highest = map.rows(top, bottom, P + top * width);    // any band of rows, from any thread
//
// Nothing of frame size is kept but P itself. A ScoreMap is read-only once made, and thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace agvas {

// One tile of one look. The maps are float32 [cells_high, cells_wide] with `stride` floats from row to row, and cover the tile's
// rectangle of the frame: enlarged bilinearly to enlarged_high x enlarged_wide px, of which the first height x width are the tile.
struct ScorePart {
  const float* seg;  // l_seg
  const float* rel;  // l_ano - l_nor
  int cells_high, cells_wide;
  ptrdiff_t stride;
  int enlarged_high, enlarged_wide;
  int top, left, height, width;
  float share;                 // of the mean over looks
  const float* row_weight;     // [height], of the tile's seams; both null where the tile is the whole frame
  const float* column_weight;  // [width]
};

class ScoreMap {
 public:
  ScoreMap(std::vector<ScorePart> parts, int height, int width, float alpha, float rest);

  // Writes rows [top, bottom) of P and returns the highest value of each to `peaks` [bottom - top].
  void rows(int top, int bottom, float* out, float* peaks) const;

  int height() const { return height_; }
  int width() const { return width_; }

 private:
  struct Columns {  // where each pixel column of a part lies between two cells
    std::vector<int32_t> at;
    std::vector<float> near, far;
  };
  std::vector<ScorePart> parts_;
  std::vector<Columns> columns_;
  int height_, width_;
  float alpha_, rest_;
};

}  // namespace agvas
