#include "camera_rows.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "row_kernels.h"

namespace agvas {

bool is_grey(PixelFormat format) { return format == PixelFormat::Mono8 || format == PixelFormat::Mono16; }

CameraRows::CameraRows(const CameraFrame& frame) : frame_(frame) {
  const std::string size = std::to_string(frame.width) + "x" + std::to_string(frame.height) + " px";
  const bool bayer = frame.format == PixelFormat::BayerRG8 || frame.format == PixelFormat::BayerGB8;
  if (frame.height < 1 || frame.width < 1) throw std::invalid_argument("the frame is " + size + "; 1x1 is the least");
  if (bayer && (frame.height < 3 || frame.width < 3))
    throw std::invalid_argument("the frame is " + size + "; a Bayer pattern needs 3x3 at least: read it as Mono8");
  if ((frame.format == PixelFormat::NV12 || frame.format == PixelFormat::YUYV) && frame.width % 2 != 0)
    throw std::invalid_argument("the frame is " + size + "; its format holds pairs of columns: give an even width");
  if (frame.format == PixelFormat::NV12 && frame.height % 2 != 0)
    throw std::invalid_argument("the frame is " + size + "; NV12 holds pairs of rows: give an even height");
  if (frame.format == PixelFormat::NV12 && frame.chroma == nullptr) frame_.chroma = frame.data + frame.height * frame.stride;
}

const uint8_t* CameraRows::grey(int y, std::vector<uint8_t>& scratch) const {
  const uint8_t* const row = frame_.data + y * frame_.stride;
  if (frame_.format == PixelFormat::Mono8) return row;
  scratch.resize(frame_.width);
  for (int x = 0; x < frame_.width; ++x) {
    uint16_t sample;
    std::memcpy(&sample, row + 2 * x, 2);
    scratch[x] = frame_.table[sample];
  }
  return scratch.data();
}

const uint8_t* CameraRows::rgb(int y, std::vector<uint8_t>& scratch) const {
  const RowKernels& kernels = row_kernels();
  const uint8_t* const row = frame_.data + y * frame_.stride;
  const int n = frame_.width;
  if (frame_.format == PixelFormat::RGB8) return row;
  if (is_grey(frame_.format)) {
    std::vector<uint8_t> single;
    const uint8_t* const values = grey(y, single);
    scratch.resize(3 * n);
    for (int x = 0; x < n; ++x) scratch[3 * x] = scratch[3 * x + 1] = scratch[3 * x + 2] = values[x];
    return scratch.data();
  }
  scratch.resize(3 * n);
  uint8_t* const out = scratch.data();
  switch (frame_.format) {
    case PixelFormat::BGR8: kernels.swap_red_blue(row, n, out); break;
    case PixelFormat::NV12: kernels.nv12_row(row, frame_.chroma + (y / 2) * frame_.stride, n, out); break;
    case PixelFormat::YUYV: kernels.yuyv_row(row, n, out); break;
    default: bayer_row(y, out); break;
  }
  return out;
}

// The outermost rows and columns take the colours of their neighbours inwards, as OpenCV has it.
void CameraRows::bayer_row(int y, uint8_t* rgb) const {
  y = std::clamp(y, 1, frame_.height - 2);
  const uint8_t* const here = frame_.data + y * frame_.stride;
  // RG: red at even rows and columns. GB: red at odd rows and even columns. Blue stands in odd columns in both.
  const bool red = (y % 2 == 0) == (frame_.format == PixelFormat::BayerRG8);
  row_kernels().bayer_row(here - frame_.stride, here, here + frame_.stride, red ? 0 : 1, red, frame_.width, rgb);
}

}  // namespace agvas
