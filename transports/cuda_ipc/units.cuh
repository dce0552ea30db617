// How elements move between memory and registers: in packets of 16 bytes where addresses allow it,
// one by one around them, several at once by each thread. Stands behind elements.cuh.
//
// Loads are plain. Another process may have written what is loaded since the last launch, and a
// target may be an operand, too: so nothing is __restrict__, and no load takes the path for what is
// constant (ld.global.nc), which may give what a cache still holds from before.

using Count = unsigned long long;

constexpr int item = sizeof(Bits);
constexpr int packet_bytes = 16;

struct alignas(packet_bytes) Packet {
  unsigned long long words[2];
};

__device__ inline const char* place(const void* base, Count element) {
  const char* at = static_cast<const char*>(base) + element * item;
#if defined(__CUDA_ARCH__)
  __builtin_assume(__isGlobal(at));  // never memory of a block or a thread: no load has to ask
#endif
  return at;
}
__device__ inline char* place(void* base, Count element) {
  return const_cast<char*>(place(static_cast<const void*>(base), element));
}

// A unit is what a thread moves by one load or store. There are `count` of them; `element` is where
// one begins, `get` and `put` are about the elements in it.

struct Packets {
  Count count;
  Count head;  // elements before the first

  using Raw = Packet;
  static constexpr int lanes = packet_bytes / item;

  __device__ Count element(Count unit) const { return head + unit * lanes; }

  __device__ static Raw load(const char* from) { return *reinterpret_cast<const Packet*>(from); }
  __device__ static void store(char* to, Raw raw) { *reinterpret_cast<Packet*>(to) = raw; }

  __device__ static Bits get(const Raw& raw, int lane) {
    return static_cast<Bits>(raw.words[lane * item / 8] >> lane * item % 8 * 8);
  }
  __device__ static void put(Raw& raw, int lane, Bits bits) {
    raw.words[lane * item / 8] |= static_cast<unsigned long long>(bits) << lane * item % 8 * 8;
  }
};

template <bool aligned>
struct Singles {
  Count count;
  Count head;    // elements before the first packet
  Count packed;  // elements in packets

  using Raw = Bits;
  static constexpr int lanes = 1;

  __device__ Count element(Count unit) const { return unit < head ? unit : unit + packed; }

  __device__ static Raw load(const char* from) {
    if constexpr (aligned) {
      return *reinterpret_cast<const Bits*>(from);
    } else {
      unsigned long long bits = 0;
#pragma unroll
      for (int i = 0; i < item; ++i)
        bits |= static_cast<unsigned long long>(static_cast<unsigned char>(from[i])) << i * 8;
      return static_cast<Bits>(bits);
    }
  }
  __device__ static void store(char* to, Raw raw) {
    if constexpr (aligned) {
      *reinterpret_cast<Bits*>(to) = raw;
    } else {
#pragma unroll
      for (int i = 0; i < item; ++i)
        to[i] = static_cast<char>(static_cast<unsigned long long>(raw) >> i * 8);
    }
  }

  __device__ static Bits get(const Raw& raw, int) { return raw; }
  __device__ static void put(Raw& raw, int, Bits bits) { raw = bits; }
};

// Where a thread's next units lie: the first, and others at equal distances, so that neighbouring
// threads have neighbouring units.
template <class Units>
struct Where {
  const Units& units;
  Count first;
  Count apart;

  __device__ Count element(int u) const { return units.element(first + u * apart); }
};

// Units of a thread, in registers. All loads are on their way before the first is waited for.
template <class Units, int size>
struct Batch {
  typename Units::Raw raw[size];

  __device__ void load(const void* from, const Where<Units>& where) {
#pragma unroll
    for (int u = 0; u < size; ++u) raw[u] = Units::load(place(from, where.element(u)));
  }
  __device__ void store(void* to, const Where<Units>& where) const {
#pragma unroll
    for (int u = 0; u < size; ++u) Units::store(place(to, where.element(u)), raw[u]);
  }
};

// The numbers of a batch.
template <class Units, int size>
struct Numbers {
  typename Element::Number numbers[size][Units::lanes];

  __device__ explicit Numbers(const Batch<Units, size>& batch) {
#pragma unroll
    for (int u = 0; u < size; ++u)
#pragma unroll
      for (int i = 0; i < Units::lanes; ++i)
        numbers[u][i] = Element::decode(Units::get(batch.raw[u], i));
  }
  __device__ void combine_with(const Batch<Units, size>& batch) {
#pragma unroll
    for (int u = 0; u < size; ++u)
#pragma unroll
      for (int i = 0; i < Units::lanes; ++i)
        numbers[u][i] = combine<operation, Element>(numbers[u][i],
                                                    Element::decode(Units::get(batch.raw[u], i)));
  }
  __device__ void divide_by(typename Element::Number divisor) {
#pragma unroll
    for (int u = 0; u < size; ++u)
#pragma unroll
      for (int i = 0; i < Units::lanes; ++i) numbers[u][i] /= divisor;
  }
  __device__ Batch<Units, size> encode() const {
    Batch<Units, size> batch = {};
#pragma unroll
    for (int u = 0; u < size; ++u)
#pragma unroll
      for (int i = 0; i < Units::lanes; ++i)
        Units::put(batch.raw[u], i, Element::encode(numbers[u][i]));
    return batch;
  }
};

// Gives every thread of the grid its share of the units, `size` at once as long as there are so
// many. No two threads have an element in common.
template <int size, class Units, class Work>
__device__ inline void share(const Units& units, const Work& work) {
  const Count threads = static_cast<Count>(gridDim.x) * blockDim.x;
  Count unit = static_cast<Count>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (; unit + (size - 1) * threads < units.count; unit += size * threads)
    work.template run<size>(Where<Units>{units, unit, threads});
  for (; unit < units.count; unit += threads)
    work.template run<1>(Where<Units>{units, unit, threads});
}

// Which elements lie in packets: none, unless all addresses have the same place between two
// multiples of 16, at which elements are aligned.
struct Split {
  Count head;
  Count packets;
  Count count;
  bool aligned;

  // `differing` has every bit in which an address differs from the first.
  __device__ Split(Count count, Count first, Count differing)
      : head(0), packets(0), count(count), aligned((first | differing) % item == 0) {
    if (!aligned || differing % packet_bytes != 0) return;
    const Count gap = -first % packet_bytes / item;
    head = gap < count ? gap : count;
    packets = (count - head) / Packets::lanes;
  }

  __device__ Packets in_packets() const { return {packets, head}; }

  template <bool aligned>
  __device__ Singles<aligned> around() const {
    const Count packed = packets * Packets::lanes;
    return {count - packed, head, packed};
  }
};

__device__ inline Count number_of(const void* address) {
  return reinterpret_cast<Count>(address);
}
