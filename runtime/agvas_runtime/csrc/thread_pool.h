// Work for several threads, without OpenMP: a wheel with OpenMP in it would bring a second pool beside that of ONNX Runtime.
//
//     parallel_for(bands, threads, [&](int band) { ... });
//
// Thread-safe: when two threads call at once, the second one does its work alone. Safe after fork(): the child makes its own threads.
#pragma once

#include <functional>

namespace agvas {

// Cores that this process may use.
int cores();

// Calls job(0) ... job(count - 1), each once, on at most `threads` threads (0: one per core), the caller's among them. Returns when
// all are done; the first exception of a job is thrown here, and jobs that have not begun by then are left out.
void parallel_for(int count, int threads, const std::function<void(int)>& job);

}  // namespace agvas
