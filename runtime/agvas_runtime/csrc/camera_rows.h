// Rows of a camera's frame as RGB, whatever the camera sends; the conversions are OpenCV's, to the bit.
//
//     CameraRows rows(frame);
//     const uint8_t* rgb = rows.rgb(y, scratch);    // or rows.grey(y, scratch) of Mono8 and Mono16
//
// Read-only, so thread-safe; each thread brings its own scratch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace agvas {

enum class PixelFormat { Mono8, Mono16, BayerRG8, BayerGB8, NV12, YUYV, RGB8, BGR8 };

struct CameraFrame {
  const uint8_t* data;
  PixelFormat format;
  int height, width;
  ptrdiff_t stride;                // bytes from row to row
  const uint8_t* chroma = nullptr;  // NV12: the rows of pairs U, V, each for two rows of pixels; right below the picture where null
  const uint8_t* table = nullptr;   // Mono16: [65536], from sample to grey
};

bool is_grey(PixelFormat format);

class CameraRows {
 public:
  // Throws std::invalid_argument where the format does not allow that size.
  explicit CameraRows(const CameraFrame& frame);

  // Row y as RGB [width, 3]; in `scratch` or in the frame itself.
  const uint8_t* rgb(int y, std::vector<uint8_t>& scratch) const;
  // Row y of a grey frame, [width].
  const uint8_t* grey(int y, std::vector<uint8_t>& scratch) const;

 private:
  void bayer_row(int y, uint8_t* rgb) const;
  CameraFrame frame_;
};

}  // namespace agvas
