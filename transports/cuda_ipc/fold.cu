// The kernels: `fold`, of several operands into one result that is written to several targets, and
// `divide`, of an array by a number. Stands behind units.cuh.
//
//   targets[t][i] = (operands[0][i] op operands[1][i]) op operands[2][i] and so on, for every t.
//
// No address need be aligned. A target may be exactly one of the operands: each element is read
// from all operands before it is written to any target, by the same thread. Otherwise nothing may
// overlap.

struct Fold {
  const void* operands[MOST_OPERANDS];
  void* targets[MOST_OPERANDS];
  Count count;
  int operand_count;
  int target_count;
};

struct Divide {
  void* data;
  Count count;
  Count divisor;
};

// The host says how large what it passes is.
static_assert(sizeof(Fold) == FOLD_BYTES, "Fold: not as large as kernels.py has it");
static_assert(sizeof(Divide) == DIVIDE_BYTES, "Divide: not as large as kernels.py has it");

#if !defined(KERNEL)  // a compiler for the CPU takes them as functions of its own kind
#define KERNEL extern "C" __global__ __launch_bounds__(THREADS)
#endif

constexpr int any_number = 0;

template <int operands>
struct Folding {
  const Fold& o;

  template <int size, class Units>
  __device__ void run(const Where<Units>& where) const {
    Batch<Units, size> result;
    if constexpr (operands == any_number)
      result = fold_one_ahead<size>(where);
    else
      result = fold_together<size>(where);
#pragma unroll 1
    for (int t = 0; t < o.target_count; ++t) result.store(o.targets[t], where);
  }

  // Of few operands, all are loaded before the first is needed.
  template <int size, class Units>
  __device__ Batch<Units, size> fold_together(const Where<Units>& where) const {
    Batch<Units, size> loaded[operands];
#pragma unroll
    for (int k = 0; k < operands; ++k) loaded[k].load(o.operands[k], where);
    if constexpr (operands == 1) {  // its bytes stay as they are
      return loaded[0];
    } else {
      Numbers<Units, size> numbers(loaded[0]);
#pragma unroll
      for (int k = 1; k < operands; ++k) numbers.combine_with(loaded[k]);
      return numbers.encode();
    }
  }

  // Of any number, one is folded while the next is on its way.
  template <int size, class Units>
  __device__ Batch<Units, size> fold_one_ahead(const Where<Units>& where) const {
    Batch<Units, size> loaded, next;
    loaded.load(o.operands[0], where);
    if (o.operand_count == 1) return loaded;
    next.load(o.operands[1], where);
    Numbers<Units, size> numbers(loaded);
#pragma unroll 1
    for (int k = 2; k < o.operand_count; ++k) {
      loaded = next;
      next.load(o.operands[k], where);
      numbers.combine_with(loaded);
    }
    numbers.combine_with(next);
    return numbers.encode();
  }
};

// A thread has four to eight loads on their way: more would take registers that other threads need.
KERNEL void fold(const __grid_constant__ Fold o) {
  const Count first = number_of(o.operands[0]);
  Count differing = 0;
  for (int k = 1; k < o.operand_count; ++k) differing |= number_of(o.operands[k]) ^ first;
  for (int t = 0; t < o.target_count; ++t) differing |= number_of(o.targets[t]) ^ first;
  const Split split(o.count, first, differing);

  const Packets packets = split.in_packets();
  switch (o.operand_count) {
    case 1:
      share<4>(packets, Folding<1>{o});
      break;
    case 2:
      share<4>(packets, Folding<2>{o});
      break;
    case 3:
      share<2>(packets, Folding<3>{o});
      break;
    case 4:
      share<2>(packets, Folding<4>{o});
      break;
    default:
      share<2>(packets, Folding<any_number>{o});
  }
  if (split.aligned)
    share<4>(split.around<true>(), Folding<any_number>{o});
  else
    share<1>(split.around<false>(), Folding<any_number>{o});
}

#if DTYPE <= 3

// The last step of an average: 16-bit floats in float32, rounded once.
struct Dividing {
  void* data;
  Element::Number divisor;

  template <int size, class Units>
  __device__ void run(const Where<Units>& where) const {
    Batch<Units, size> batch;
    batch.load(data, where);
    Numbers<Units, size> numbers(batch);
    numbers.divide_by(divisor);
    numbers.encode().store(data, where);
  }
};

KERNEL void divide(const __grid_constant__ Divide o) {
  const Split split(o.count, number_of(o.data), 0);
  const Dividing dividing{o.data, static_cast<Element::Number>(o.divisor)};
  share<4>(split.in_packets(), dividing);
  if (split.aligned)
    share<4>(split.around<true>(), dividing);
  else
    share<1>(split.around<false>(), dividing);
}

#endif
