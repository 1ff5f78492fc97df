// Draw an id from a row of logits: temperature, then top-k, then top-p, then the largest of score + Gumbel noise.
//
// tests/custom_cuda_oracle/sampling.py is the definition. Rank is by `code`: the score's ordered bits above, the inverted
// id below, so codes are unique and ties go to the lowest id. Probabilities are summed as integers (2^-40 of the most likely one's),
// so the sums do not depend on the order in which blocks arrive.
//
// Only the boundary of top-k or top-p has to be found exactly. A histogram over the scores says in which narrow bin it
// lies; the few codes of that bin are gathered, and the boundary is searched among them. This is exact for any row,
// also where all codes share one bin; it is then only slower.
//
//   temperature 0:  draw, without noise    top-k or top-p:  histogram, gather, cut, draw
//   plain:          draw                   both:            histogram, gather, cut, gather, cut, draw
#include "kernel.h"

constexpr int SAMPLING_THREADS = 256;
constexpr int BINS = 2048;
constexpr float BINS_PER_LOGIT = 64.0f;

typedef unsigned long long u64;

struct Bin {
    u64 mass;
    u64 count;
};

// What is known of a row's boundary; zero before the first kernel and after the last.
struct Cut {
    u64 code;          // smallest that is kept
    u64 mass;          // of all that is kept
    u64 base_mass;     // of the bins before the boundary's
    u64 base_count;
    int bin;           // the boundary's
    int next_bin;      // the same, between gather and cut
    unsigned listed;   // codes gathered from it
};

struct SamplingParams {
    const float *logits;   // [B][vocabulary]
    const u64 *largest;    // [B]: ordered bits of the largest logit in the high word; may be `best`. Read with filters
    const int *position;   // [B]; below 0: this row is empty
    const int *count;      // [B]: ids that the request has been given before
    u64 *best;             // [B]: the drawn id, inverted, goes to the low word
    u64 *drawn;            // [B]; zero between steps
    unsigned *arrived;     // [B]; zero between steps
    Bin *bins;             // [B][BINS]; zero between steps
    Cut *cut;              // [B]; zero between steps
    u64 *codes;            // [B][vocabulary]
    u64 seed;
    float temperature;     // 0: the largest logit
    float top_p;           // 1 and above: off
    int top_k;             // 0: off
    int vocabulary;
    int stage;             // gather, cut: 0 for top-k, 1 for top-p
};

static __device__ inline unsigned ordered(float value) {
    unsigned bits = __float_as_uint(value);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

static __device__ inline float from_ordered(unsigned bits) {
    return __uint_as_float(bits & 0x80000000u ? bits & 0x7fffffffu : ~bits);
}

static __device__ inline u64 code_of(float value, int id) {
    return (u64)ordered(value) << 32 | (0xffffffffu - (unsigned)id);
}

// Adding 0 makes the two zeros one: ordered bits tell them apart, a comparison does not.
static __device__ inline float score_of(const SamplingParams &p, float logit) {
    return (p.temperature > 0.0f ? logit / p.temperature : logit) + 0.0f;
}

static __device__ inline u64 mass_of(float score, float largest) {
    return (u64)(expf(score - largest) * 1099511627776.0f);  // 2^40
}

static __device__ inline int bin_of(float score, float largest, float temperature) {
    float below = (largest - score) * (BINS_PER_LOGIT * temperature);
    return below < (float)(BINS - 1) ? (int)below : BINS - 1;
}

static __device__ inline u64 shuffle_xor(u64 value, int lane) {
    unsigned low = __shfl_xor_sync(0xffffffffu, (unsigned)value, lane);
    unsigned high = __shfl_xor_sync(0xffffffffu, (unsigned)(value >> 32), lane);
    return (u64)high << 32 | low;
}

// Sum over the block, the same in every thread. `space` has one element a warp.
static __device__ inline u64 block_sum(u64 value, u64 *space) {
    for (int lane = 16; lane > 0; lane >>= 1) value += shuffle_xor(value, lane);
    __syncthreads();  // an earlier sum may still be read
    if ((threadIdx.x & 31) == 0) space[threadIdx.x >> 5] = value;
    __syncthreads();
    u64 sum = 0;
    for (int warp = 0; warp < SAMPLING_THREADS / 32; warp++) sum += space[warp];
    return sum;
}

static __device__ inline u64 block_max(u64 value, u64 *space) {
    for (int lane = 16; lane > 0; lane >>= 1) {
        u64 other = shuffle_xor(value, lane);
        value = other > value ? other : value;
    }
    __syncthreads();
    if ((threadIdx.x & 31) == 0) space[threadIdx.x >> 5] = value;
    __syncthreads();
    u64 largest = 0;
    for (int warp = 0; warp < SAMPLING_THREADS / 32; warp++) largest = space[warp] > largest ? space[warp] : largest;
    return largest;
}

// Does a code stay that has so many codes and so much mass before it?
static __device__ inline bool stays(const SamplingParams &p, u64 count, u64 mass, u64 total) {
    if (p.stage == 0) return count < (u64)p.top_k;
    return count == 0 || (double)mass < (double)p.top_p * (double)total;
}

// Philox4x32-10, Salmon et al. 2011; counter (group, step, 0, 0).
static __device__ inline uint4 philox(unsigned group, unsigned step, u64 seed) {
    unsigned c0 = group, c1 = step, c2 = 0, c3 = 0;
    unsigned k0 = (unsigned)seed, k1 = (unsigned)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        u64 first = (u64)0xD2511F53u * c0, second = (u64)0xCD9E8D57u * c2;
        c0 = (unsigned)(second >> 32) ^ c1 ^ k0;
        c1 = (unsigned)second;
        c2 = (unsigned)(first >> 32) ^ c3 ^ k1;
        c3 = (unsigned)first;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return make_uint4(c0, c1, c2, c3);
}

static __device__ inline float gumbel(unsigned word) {
    float uniform = fminf(fmaf((float)word, 2.3283064365386963e-10f, 1.1641532182693481e-10f), 0.99999994f);
    return -logf(-log1pf(-uniform));
}

// Grid: (blocks, B).
KERNEL(SAMPLING_THREADS, 2, sampling_histogram, SamplingParams) {
    __shared__ unsigned counts[BINS], low[BINS], high[BINS];
    int row = blockIdx.y;
    if (p.position[row] < 0) return;
    for (int bin = threadIdx.x; bin < BINS; bin += SAMPLING_THREADS) counts[bin] = low[bin] = high[bin] = 0;
    __syncthreads();
    const float *logits = p.logits + (size_t)row * p.vocabulary;
    float largest = score_of(p, from_ordered((unsigned)(p.largest[row] >> 32)));
    for (int id = blockIdx.x * SAMPLING_THREADS + threadIdx.x; id < p.vocabulary; id += gridDim.x * SAMPLING_THREADS) {
        float score = score_of(p, logits[id]);
        int bin = bin_of(score, largest, p.temperature);
        u64 mass = mass_of(score, largest);
        atomicAdd(&counts[bin], 1u);
        // 64 bits in two words: shared memory has no addition of 64 bits.
        unsigned before = atomicAdd(&low[bin], (unsigned)mass);
        unsigned above = (unsigned)(mass >> 32) + (before + (unsigned)mass < before);
        if (above) atomicAdd(&high[bin], above);
    }
    __syncthreads();
    Bin *bins = p.bins + (size_t)row * BINS;
    for (int bin = threadIdx.x; bin < BINS; bin += SAMPLING_THREADS) {
        if (!counts[bin]) continue;
        atomicAdd(&bins[bin].count, (u64)counts[bin]);
        atomicAdd(&bins[bin].mass, (u64)high[bin] << 32 | low[bin]);
    }
}

// Finds the boundary's bin and lists the codes in it. Grid: (blocks, B).
KERNEL(SAMPLING_THREADS, 2, sampling_gather, SamplingParams) {
    __shared__ u64 counts[SAMPLING_THREADS], masses[SAMPLING_THREADS], space[SAMPLING_THREADS / 32];
    __shared__ Cut found;  // base_mass, base_count and bin of it
    constexpr int EACH = BINS / SAMPLING_THREADS;
    int row = blockIdx.y;
    if (p.position[row] < 0) return;
    const Bin *bins = p.bins + (size_t)row * BINS;
    Cut *cut = p.cut + row;
    u64 count = 0, mass = 0;
    for (int bin = threadIdx.x * EACH; bin < (threadIdx.x + 1) * EACH; bin++) {
        count += bins[bin].count;
        mass += bins[bin].mass;
    }
    counts[threadIdx.x] = count;
    masses[threadIdx.x] = mass;
    u64 total = block_sum(mass, space);
    u64 kept = 0;  // smallest code that top-k has left
    int last = BINS - 1;
    if (p.stage == 1 && p.top_k > 0) {
        kept = cut->code;
        total = cut->mass;
        last = cut->bin;
    }
    if (threadIdx.x == 0) {
        u64 before_count = 0, before_mass = 0;
        int thread = 0;
        while (thread < SAMPLING_THREADS - 1 && (thread + 1) * EACH <= last &&
               stays(p, before_count + counts[thread], before_mass + masses[thread], total)) {
            before_count += counts[thread];
            before_mass += masses[thread];
            thread++;
        }
        int bin = thread * EACH;
        while (bin < last && stays(p, before_count + bins[bin].count, before_mass + bins[bin].mass, total)) {
            before_count += bins[bin].count;
            before_mass += bins[bin].mass;
            bin++;
        }
        found.base_count = before_count;
        found.base_mass = before_mass;
        found.bin = bin;
    }
    __syncthreads();
    const float *logits = p.logits + (size_t)row * p.vocabulary;
    u64 *codes = p.codes + (size_t)row * p.vocabulary;
    float largest = score_of(p, from_ordered((unsigned)(p.largest[row] >> 32)));
    for (int id = blockIdx.x * SAMPLING_THREADS + threadIdx.x; id < p.vocabulary; id += gridDim.x * SAMPLING_THREADS) {
        float score = score_of(p, logits[id]);
        if (bin_of(score, largest, p.temperature) != found.bin) continue;
        u64 code = code_of(score, id);
        if (code >= kept) codes[atomicAdd(&cut->listed, 1u)] = code;
    }
    // Every block has found the same. What blocks read above is not written here, but by `cut`.
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        cut->base_count = found.base_count;
        cut->base_mass = found.base_mass;
        cut->next_bin = found.bin;
    }
}

// Searches the boundary among the listed codes. Grid: (1, B).
KERNEL(SAMPLING_THREADS, 1, sampling_cut, SamplingParams) {
    __shared__ u64 space[SAMPLING_THREADS / 32];
    int row = blockIdx.y;
    if (p.position[row] < 0) return;
    Cut *cut = p.cut + row;
    const u64 *codes = p.codes + (size_t)row * p.vocabulary;
    const Bin *bins = p.bins + (size_t)row * BINS;
    int n = (int)cut->listed;
    u64 base_count = cut->base_count, base_mass = cut->base_mass;
    float largest = score_of(p, from_ordered((unsigned)(p.largest[row] >> 32)));
    u64 total = 0;
    if (p.stage == 1 && p.top_k > 0) {
        total = cut->mass;
    } else if (p.stage == 1) {
        for (int bin = threadIdx.x; bin < BINS; bin += SAMPLING_THREADS) total += bins[bin].mass;
        total = block_sum(total, space);
    }
    u64 low = ~0ull, high = 0;
    for (int i = threadIdx.x; i < n; i += SAMPLING_THREADS) {
        low = codes[i] < low ? codes[i] : low;
        high = codes[i] > high ? codes[i] : high;
    }
    high = block_max(high, space);
    low = ~block_max(~low, space);
    // The largest code stays; find the smallest that does, or any number between it and the next smaller one.
    while (low < high) {
        u64 middle = low + (high - low) / 2;
        u64 counted = 0, mass = 0;  // between low and high; above the middle in the high word
        for (int i = threadIdx.x; i < n; i += SAMPLING_THREADS) {
            u64 code = codes[i];
            counted += (u64)(code >= low && code < high) | (u64)(code > middle) << 32;
            if (code > middle) mass += mass_of(from_ordered((unsigned)(code >> 32)), largest);
        }
        counted = block_sum(counted, space);
        mass = block_sum(mass, space);
        if ((unsigned)counted == 0) break;
        if (stays(p, base_count + (counted >> 32), base_mass + mass, total)) high = middle;
        else low = middle + 1;
    }
    u64 mass = 0;
    for (int i = threadIdx.x; i < n; i += SAMPLING_THREADS) {
        if (codes[i] >= high) mass += mass_of(from_ordered((unsigned)(codes[i] >> 32)), largest);
    }
    mass = block_sum(mass, space);
    if (threadIdx.x == 0) {
        cut->code = high;
        cut->mass = base_mass + mass;
        cut->bin = cut->next_bin;
        cut->listed = 0;
    }
}

// The largest of score + noise among the codes that are kept. Grid: (blocks, B); the last block to arrive hands out.
KERNEL(SAMPLING_THREADS, 2, sampling_draw, SamplingParams) {
    __shared__ u64 space[SAMPLING_THREADS / 32];
    __shared__ bool last;
    int row = blockIdx.y;
    if (p.position[row] < 0) return;
    const float *logits = p.logits + (size_t)row * p.vocabulary;
    u64 kept = p.cut[row].code;
    unsigned step = (unsigned)p.count[row];
    u64 best = 0;
    int groups = (p.vocabulary + 3) / 4;
    for (int group = blockIdx.x * SAMPLING_THREADS + threadIdx.x; group < groups;
         group += gridDim.x * SAMPLING_THREADS) {
        float scores[4];
        bool any = false;
        for (int i = 0; i < 4; i++) {
            int id = group * 4 + i;
            bool inside = id < p.vocabulary;
            scores[i] = inside ? score_of(p, logits[id]) : 0.0f;
            any = any || (inside && code_of(scores[i], id) >= kept);
        }
        if (!any) continue;
        uint4 words = philox((unsigned)group, step, p.seed);
        unsigned word[4] = {words.x, words.y, words.z, words.w};
        for (int i = 0; i < 4; i++) {
            int id = group * 4 + i;
            if (id >= p.vocabulary || code_of(scores[i], id) < kept) continue;
            u64 code = code_of(p.temperature > 0.0f ? scores[i] + gumbel(word[i]) : scores[i], id);
            best = code > best ? code : best;
        }
    }
    best = block_max(best, space);
    if (threadIdx.x == 0) {
        atomicMax(&p.drawn[row], best);
        __threadfence();
        last = atomicAdd(&p.arrived[row], 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (!last) return;
    if (threadIdx.x == 0) {
        p.best[row] = atomicExch(&p.drawn[row], 0ull);
        p.arrived[row] = 0;
        p.cut[row].code = 0;
        p.cut[row].mass = 0;
    }
    Bin *bins = p.bins + (size_t)row * BINS;
    bool filtered = p.top_k > 0 || p.top_p < 1.0f;
    for (int bin = threadIdx.x; filtered && bin < BINS; bin += SAMPLING_THREADS) bins[bin].mass = bins[bin].count = 0;
}
