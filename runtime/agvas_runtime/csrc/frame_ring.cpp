#include "frame_ring.h"

#include <algorithm>
#include <chrono>
#include <new>
#include <stdexcept>
#include <string>

#include "pinned_memory.h"

namespace agvas {
namespace {

constexpr size_t kPage = 4096;

}  // namespace

FrameRing::FrameRing(int slots, size_t bytes) : bytes_(bytes), stride_((bytes + kPage - 1) / kPage * kPage) {
  if (slots < 1 || bytes < 1) throw std::invalid_argument("a ring needs one slot of one byte at least");
  if (stride_ < bytes || stride_ > SIZE_MAX / static_cast<size_t>(slots)) throw std::bad_alloc();
  memory_ = static_cast<uint8_t*>(allocate_pinned(stride_ * slots));
  pinned_ = memory_ != nullptr;
  if (!pinned_) memory_ = static_cast<uint8_t*>(::operator new(stride_ * slots, std::align_val_t(kPage)));
  state_.assign(slots, State::Free);
}

FrameRing::~FrameRing() {
  if (pinned_)
    free_pinned(memory_);
  else
    ::operator delete(memory_, std::align_val_t(kPage));
}

int FrameRing::claim(int wait_ms, bool drop) {
  std::unique_lock<std::mutex> lock(mutex_);
  const auto find = [this] { return std::find(state_.begin(), state_.end(), State::Free); };
  if (drop && find() == state_.end() && !published_.empty()) {
    state_[published_.front()] = State::Free;
    published_.pop_front();
    ++dropped_;
  }
  freed_.wait_for(lock, std::chrono::milliseconds(wait_ms), [&] { return find() != state_.end(); });
  const auto free = find();
  if (free == state_.end()) return -1;
  *free = State::Claimed;
  return static_cast<int>(free - state_.begin());
}

void FrameRing::publish(int slot) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    move(slot, State::Claimed, State::Published, "published");
    published_.push_back(slot);
  }
  filled_.notify_one();
}

void FrameRing::discard(int slot) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    move(slot, State::Claimed, State::Free, "discarded");
  }
  freed_.notify_one();
}

int FrameRing::take(int wait_ms) {
  std::unique_lock<std::mutex> lock(mutex_);
  if (!filled_.wait_for(lock, std::chrono::milliseconds(wait_ms), [this] { return !published_.empty(); })) return -1;
  const int slot = published_.front();
  published_.pop_front();
  state_[slot] = State::Taken;
  return slot;
}

void FrameRing::release(int slot) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    move(slot, State::Taken, State::Free, "released");
  }
  freed_.notify_one();
}

uint8_t* FrameRing::data(int slot) const {
  if (slot < 0 || slot >= slots())
    throw std::invalid_argument("slot " + std::to_string(slot) + " of a ring of " + std::to_string(slots()));
  return memory_ + stride_ * slot;
}

int64_t FrameRing::dropped() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return dropped_;
}

void FrameRing::move(int slot, State from, State to, const char* what) {
  data(slot);  // checks the range
  if (state_[slot] != from)
    throw std::invalid_argument("slot " + std::to_string(slot) + " cannot be " + what + ": it is not " +
                                (from == State::Claimed ? "claimed" : "taken"));
  state_[slot] = to;
}

}  // namespace agvas
