// Time that passes only when the program under test looks at it, yields or sleeps: a deadline of
// seconds is over in a moment, a run is the same each time, and every wait gives others a turn.
#pragma once

#include <cstdint>
#include <functional>

namespace fuzzing {

// What others do meanwhile.
void set_turn(std::function<void()> turn);
std::int64_t virtual_now_ns();

}  // namespace fuzzing
