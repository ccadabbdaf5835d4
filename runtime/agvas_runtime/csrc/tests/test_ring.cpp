#include <cstring>
#include <thread>

#include "check.h"
#include "frame_ring.h"

using namespace agvas;

TEST(frames_pass_between_threads_whole_and_in_order) {
  FrameRing ring(3, 4097);
  std::thread grabber([&] {
    for (int frame = 0; frame < 500; ++frame) {
      const int slot = ring.claim(10000, false);
      std::memset(ring.data(slot), frame % 251, ring.bytes());
      ring.publish(slot);
    }
  });
  for (int frame = 0; frame < 500; ++frame) {
    const int slot = ring.take(10000);
    CHECK(slot >= 0);
    for (size_t i = 0; i < ring.bytes(); i += 512) CHECK(ring.data(slot)[i] == frame % 251);
    ring.release(slot);
  }
  grabber.join();
  CHECK(ring.dropped() == 0);
}

TEST(what_was_dropped_is_counted) {
  FrameRing ring(2, 16);
  std::thread grabber([&] {
    for (int frame = 0; frame < 1000; ++frame) ring.publish(ring.claim(10000, true));
  });
  int taken = 0;
  for (int slot = ring.take(1000); slot >= 0 && taken < 5; slot = ring.take(1000), ++taken) ring.release(slot);
  grabber.join();
  while (ring.take(0) >= 0) ++taken;
  CHECK(ring.dropped() + taken <= 1000);
  CHECK(ring.dropped() > 0);
}

TEST(buffers_do_not_overlap) {
  FrameRing ring(4, 5000);
  for (int slot = 0; slot < 4; ++slot) std::memset(ring.data(slot), slot, 5000);
  for (int slot = 0; slot < 4; ++slot) CHECK(ring.data(slot)[0] == slot && ring.data(slot)[4999] == slot);
}
