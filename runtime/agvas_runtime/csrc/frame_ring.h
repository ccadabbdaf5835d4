// A ring of equal buffers between a grabber and whoever judges its frames: made once, never allocated again.
//
//     FrameRing ring(4, bytes);
//     int slot = ring.claim(100);      grab into ring.data(slot);   ring.publish(slot);      // one thread
//     int slot = ring.take(100);       read ring.data(slot);        ring.release(slot);      // another
//
// Buffers are page-locked where the build has CUDA and a GPU is there (copies to it then run beside kernels), plain memory on page
// borders where not; pinned() says which. All of it is thread-safe; frames come out in the order in which they were published.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <mutex>
#include <vector>

namespace agvas {

class FrameRing {
 public:
  // Throws std::bad_alloc, std::invalid_argument.
  FrameRing(int slots, size_t bytes);
  ~FrameRing();
  FrameRing(const FrameRing&) = delete;
  FrameRing& operator=(const FrameRing&) = delete;

  // A free buffer, waiting for one up to wait_ms; -1 where there is none. Where `drop` is true the oldest frame that nobody has taken
  // makes room at once, and counts as dropped.
  int claim(int wait_ms, bool drop);
  // Hands over a claimed buffer.
  void publish(int slot);
  // Gives a claimed buffer back without a frame in it.
  void discard(int slot);
  // The oldest frame, waiting up to wait_ms; -1 where there is none.
  int take(int wait_ms);
  // Gives a taken buffer back.
  void release(int slot);

  uint8_t* data(int slot) const;
  int slots() const { return static_cast<int>(state_.size()); }
  size_t bytes() const { return bytes_; }
  bool pinned() const { return pinned_; }
  int64_t dropped() const;

 private:
  enum class State { Free, Claimed, Published, Taken };
  void move(int slot, State from, State to, const char* what);

  size_t bytes_, stride_;
  uint8_t* memory_ = nullptr;
  bool pinned_ = false;
  int64_t dropped_ = 0;
  std::vector<State> state_;
  std::deque<int> published_;
  mutable std::mutex mutex_;
  std::condition_variable freed_, filled_;
};

}  // namespace agvas
