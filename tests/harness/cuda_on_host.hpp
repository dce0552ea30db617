// What CUDA source needs of its language to be C++ for the CPU: the grid is a loop over threads,
// one after the other, so that a thread sees all that those before it have done.
//
// A bad address, or what a compiler that traps undefined behaviour finds (an address that is not
// aligned as its type wants, say), ends the kernel and not the process.
#pragma once

#include <setjmp.h>
#include <signal.h>
#include <string.h>

#define __device__
#define __grid_constant__
#define KERNEL static

struct OneDimension {
  unsigned int x;
};
static thread_local OneDimension blockIdx, threadIdx, blockDim, gridDim;

namespace on_host {

static thread_local sigjmp_buf before;
static constexpr int fatal[] = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP};
static constexpr int fatal_count = sizeof fatal / sizeof *fatal;

static void back(int signal_number) {
  siglongjmp(before, signal_number);
}

template <class Arguments>
static void run_threads(void (*kernel)(Arguments), const Arguments& arguments, bool backwards) {
  const unsigned long long total = 1ull * gridDim.x * blockDim.x;
  for (unsigned long long i = 0; i < total; ++i) {
    const unsigned long long thread = backwards ? total - 1 - i : i;
    blockIdx.x = static_cast<unsigned int>(thread / blockDim.x);
    threadIdx.x = static_cast<unsigned int>(thread % blockDim.x);
    kernel(arguments);
  }
}

// 0, or the signal that ended the kernel.
template <class Arguments>
static int run_grid(void (*kernel)(Arguments), const void* arguments, unsigned int blocks,
                    unsigned int threads, int backwards) {
  struct sigaction ours = {}, theirs[fatal_count];
  ours.sa_handler = back;
  for (int i = 0; i < fatal_count; ++i) sigaction(fatal[i], &ours, &theirs[i]);
  const int signal_number = sigsetjmp(before, 1);
  if (signal_number == 0) {
    gridDim.x = blocks;
    blockDim.x = threads;
    run_threads(kernel, *static_cast<const Arguments*>(arguments), backwards != 0);
  }
  for (int i = 0; i < fatal_count; ++i) sigaction(fatal[i], &theirs[i], nullptr);
  return signal_number;
}

}  // namespace on_host
