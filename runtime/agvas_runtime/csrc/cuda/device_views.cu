#include "device_views.h"

#include <stdexcept>
#include <vector>

#include "area_axis.h"
#include "check.h"
#include "device_memory.h"
#include "view_pixel.h"

namespace agvas {
namespace {

__global__ void view_kernel(CameraFrame frame, DeviceView view, uint8_t* out) {
  const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
  if (x < view.wide && y < view.high) view_pixel(frame, view, y, x, out);
}

}  // namespace

struct DeviceViews::State {
  CameraFrame frame;
  std::vector<DeviceView> views;
  DeviceMemory memory;
};

DeviceViews::DeviceViews(const CameraFrame& frame, const Crop& crop, const ViewPlan* plans, int count) : state_(new State{frame, {}, {}}) {
  CameraRows checked(frame);
  for (int i = 0; i < count; ++i) {
    const ViewAxes axes(plans[i], crop);
    const ViewPlan& plan = plans[i];
    DeviceView view{};
    const auto to_device = [&](const Axis& axis) {
      return DeviceAxis{state_->memory.copy(axis.first), state_->memory.copy(axis.count), state_->memory.copy(axis.weight), axis.taps};
    };
    view.rows = to_device(axes.rows);
    view.columns = to_device(axes.columns);
    view.top = crop.top, view.left = crop.left;
    view.content_high = plan.content_high, view.content_wide = plan.content_wide, view.high = plan.high, view.wide = plan.wide;
    view.scale = axes.scale, view.up = axes.up;
    for (int c = 0; c < 3; ++c) view.padding[c] = plan.padding[c];
    state_->views.push_back(view);
  }
  if (frame.table != nullptr) state_->frame.table = state_->memory.copy(std::vector<uint8_t>(frame.table, frame.table + 65536));
}

DeviceViews::~DeviceViews() = default;

int DeviceViews::count() const { return static_cast<int>(state_->views.size()); }

void DeviceViews::run(const uint8_t* data, uint8_t* const* outputs, void* stream) const {
  CameraFrame frame = state_->frame;
  frame.data = data;
  frame.chroma = data + frame.height * frame.stride;
  for (size_t i = 0; i < state_->views.size(); ++i) {
    const DeviceView& view = state_->views[i];
    const dim3 block(32, 8), grid((view.wide + 31) / 32, (view.high + 7) / 8);
    AGVAS_LAUNCH(view_kernel, grid, block, static_cast<cudaStream_t>(stream), frame, view, outputs[i]);
    AGVAS_CHECK(cudaGetLastError());
  }
}

}  // namespace agvas
