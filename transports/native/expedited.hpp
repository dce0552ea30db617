// A fence that only the one who goes to sleep pays for.
//
// A peer announces its sleep, then looks at a counter; whoever moves the counter then looks for
// sleepers. One of the two must see the other, which takes a full fence on both sides: some twenty
// nanoseconds a message for whoever moves counters. Where the kernel has membarrier, the sleeper
// makes every running thread of the registered processes execute that fence, and nobody else needs
// one: it is about to give up the processor anyway.
#pragma once

namespace transports {

// Lets sleepers of other processes fence the threads of this one. False if the kernel, or a filter
// of system calls, does not let us; may be called again.
bool register_for_expedited_fences();

// A full fence on this thread and on every running thread of the registered processes. Only after
// a registration that succeeded.
void expedited_fence();

}  // namespace transports
