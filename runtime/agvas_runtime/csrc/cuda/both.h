// Functions of one pixel that the kernels call and that a CPU can call too: so the tests without a GPU run the same source.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define AGVAS_BOTH __host__ __device__ inline
#else
#define AGVAS_BOTH inline
#endif

// A kernel's launch; tests/on_cpu has another meaning of it.
#ifdef __CUDACC__
#define AGVAS_LAUNCH(kernel, grid, block, stream, ...) kernel<<<grid, block, 0, stream>>>(__VA_ARGS__)
#endif
