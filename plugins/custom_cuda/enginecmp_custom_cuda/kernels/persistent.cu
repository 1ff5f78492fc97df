// decode_persistent: tokens of one sequence, one after the other, by one kernel that stays: a block a multiprocessor.
//
// Every block follows its rows of the schedule (persistent/schedule.py): it waits for the counters that a row names,
// makes the matrix's input for itself, multiplies its tiles, stores its rows, and raises a counter. Weights come
// through a ring in shared memory that a warp of its own keeps filled. Launched cooperatively: blocks wait for others.
#include "attention.cuh"
#include "kernel.h"
#include "persistent_finish.cuh"
#include "persistent_params.h"
#include "persistent_ring.cuh"
#include "persistent_sources.cuh"
#include "persistent_wait.cuh"
#include "ptx.cuh"

static_assert(BATCH == 1, "one sequence");

namespace persistent {

// What the consumers have in shared memory beside the ring.
struct Scratch {
    float squares[1][matvec::WARPS];
    unsigned long long best[matvec::WARPS];
};

struct Consumer {
    const PersistentParams &p;
    const PersistentLayer *layers;
    Ring ring;
    uint4 *activation;
    float *results;
    Scratch &scratch;
    int id, position, count;
    int token = 0, row_number = 0;
    unsigned long long best = 0;  // of this thread's rows of the head

    __device__ Consumer(const PersistentParams &p_, unsigned char *shared, Scratch &scratch_)
        : p(p_), layers(reinterpret_cast<const PersistentLayer *>(shared + p_.layers_at)),
          ring(p_, shared, threadIdx.x / 32 / TEAM_WARPS),
          activation(reinterpret_cast<uint4 *>(shared + p_.activation_at)),
          results(reinterpret_cast<float *>(shared + p_.results_at)), scratch(scratch_), id(*p_.token),
          position(*p_.position), count(*p_.count) {}

    __device__ __forceinline__ void run(const int *words, int rows) {
        for (; token < p.tokens; ++token) {
            for (row_number = 0; row_number < rows; ++row_number) {
                const Row row = {words + row_number * ROW_WORDS};
                switch (row.kind()) {
                    case ATTENTION: attention(row); break;
                    case NEXT: next(row); break;
                    default: matrix(row); break;
                }
            }
        }
        end();
    }

    // Everything that the counter stands for has happened before what follows, for all consumers.
    __device__ __forceinline__ void await(const Row &row) const {
        if (threadIdx.x == 0) REMOVABLE("counter", await_counter(p, token, row_number, row.counter(), row.target()));
        CONSUMERS_MEET();
    }

    // Everything that this block has stored happens before the counter's growth.
    __device__ __forceinline__ void signal(const Row &row) const {
        CONSUMERS_MEET();
        if (threadIdx.x == 0) ptx::add_release(p.counters + row.signal() * 32, 1u);
    }

    // The input of a matrix, then this block's tiles of it, then what becomes of their rows.
    __device__ __forceinline__ void matrix(const Row &row) {
        const int kind = row.kind(), columns = columns_of(p, kind);
        const int chunks = (columns + packing::CHUNK_COLUMNS - 1) / packing::CHUNK_COLUMNS;
        const int warp = threadIdx.x / 32, team = warp / TEAM_WARPS, quarter = warp % TEAM_WARPS;
        const dot::Activations activations(activation, columns);
        if (row.waits()) await(row);  // without tiles, too: what follows is in order all the same
        if (row.count() > 0) {
            prepare(row, activations);
            CONSUMERS_MEET();
        }
        for (int base = 0; base < row.count(); base += p.result_tiles) {
            const int tiles = min(p.result_tiles, row.count() - base);
            // What this thread's row is added to: on its way while the sums are made.
            const float before = residual(row, base, tiles);
            for (int tile = 0; tile < tiles; ++tile) {
                float sum[dot::LOADS][BATCH];
#pragma unroll
                for (int i = 0; i < dot::LOADS; ++i) sum[i][0] = 0.0f;
                for (int chunk = 0; chunk < chunks; ++chunk) {
                    if (team_of((row.first() + base + tile) * chunks + chunk) == team)
                        take(sum, activations, columns, chunk, quarter);
                }
                float *const to = results + (tile * TEAMS + team) * packing::TILE_ROWS + quarter * dot::ROWS;
                add_lanes(sum, to);
            }
            CONSUMERS_MEET();
            finish(row, (row.first() + base) * packing::TILE_ROWS, tiles * packing::TILE_ROWS, before);
            // The next tiles' sums go where these are.
            if (base + p.result_tiles < row.count()) CONSUMERS_MEET();
        }
        if (kind == HEAD) hand_in();
        signal(row);
    }

    // Fill the activations. They are complete when the consumers have met.
    __device__ __forceinline__ void prepare(const Row &row, const dot::Activations &activations) {
        if (row.kind() == OUTPUT) {
            Merged source = {p, active_splits()};
            fill(activations, 0, p.heads * HEAD_DIM / 4, source);
            return;
        }
        if (row.kind() == DOWN) {
            Plain source = {p.h};
            fill(activations, 0, p.inner / 4, source);
            return;
        }
        if (row.kind() == QKV && row.layer() == 0) {
            // All blocks that read x here write the same numbers to it, and read what they have written themselves.
            embed(p, id);
            CONSUMERS_MEET();
        }
        const float *const weight = row.kind() == HEAD  ? p.output_norm
                                    : row.kind() == QKV ? layers[row.layer()].attention_norm
                                                        : layers[row.layer()].ffn_norm;
        Normed source = {p.x, weight};
        fill(activations, 0, p.hidden / 4, source);
        const float total = warp::sum(source.square);
        if (threadIdx.x % 32 == 0) scratch.squares[0][threadIdx.x / 32] = total;
    }

    // 4 rows of one chunk.
    __device__ __forceinline__ void take(float (&sum)[dot::LOADS][BATCH], const dot::Activations &activations,
                                         int columns, int chunk, int quarter) {
        constexpr int SLABS = packing::CHUNK_COLUMNS / dot::SLAB;
        const int lane = threadIdx.x % 32, width = min(packing::CHUNK_COLUMNS, columns - chunk * packing::CHUNK_COLUMNS);
        REMOVABLE("full slot", await_full(ring, p, token, row_number));
        const packing::Chunk weights(Matrix{ring.chunk(), packing::TILE_ROWS, width}, 0, 0);
#pragma unroll
        for (int slab = 0; slab < SLABS; ++slab) {
            const int within = slab * dot::SLAB + lane % dot::ROW_LANES * dot::ELEMENTS;
            if (within >= width) continue;
            const unsigned char *const at = weights.weights + within / dot::ELEMENTS * 16;
            dot::Piece piece;
#pragma unroll
            for (int i = 0; i < dot::LOADS; ++i) {
                const int r = quarter * dot::ROWS + dot::row_of(i, lane);
                const uint4 bits = *reinterpret_cast<const uint4 *>(at + r * weights.row_bytes());
                piece.word[i][0] = bits.x, piece.word[i][1] = bits.y;
                piece.word[i][2] = bits.z, piece.word[i][3] = bits.w;
                if (packing::SCALED) piece.scale[i] = weights.scales(r)[within / packing::BLOCK];
            }
            piece.multiply(sum, activations, chunk * SLABS + slab, columns);
        }
        release(ring);
        ring.advance();
    }

    // Add up the lanes of this warp's 4 rows, as matvec.cuh does.
    __device__ __forceinline__ static void add_lanes(const float (&sum)[dot::LOADS][BATCH], float *to) {
        float flat[dot::LOADS];
#pragma unroll
        for (int i = 0; i < dot::LOADS; ++i) flat[i] = sum[i][0];
        const float total = warp::scattered_sum<dot::ROW_LANES>(flat);
        const int lane = threadIdx.x % 32, value = lane % dot::ROW_LANES;
        if (value < dot::LOADS) to[dot::row_of(value, lane)] = total;
    }

    // The residual stream at this thread's row of some tiles, where their sums are added to it; their owner is this block.
    __device__ __forceinline__ float residual(const Row &row, int base, int tiles) const {
        const int r = (row.first() + base) * packing::TILE_ROWS + threadIdx.x;
        const bool adds = row.kind() == OUTPUT || row.kind() == DOWN;
        return adds && threadIdx.x < tiles * packing::TILE_ROWS && r < p.hidden ? p.x[r] : 0.0f;
    }

    // Rows first to first + rows - 1, at most one a thread, whose sums are complete.
    __device__ __forceinline__ void finish(const Row &row, int first, int rows, float before) {
        const int kind = row.kind();
        const int all = kind == QKV       ? (p.heads + 2 * p.kv_heads) * HEAD_DIM
                        : kind == GATE_UP ? 2 * p.inner
                        : kind == HEAD    ? p.vocabulary
                                          : p.hidden;
        const float inverse = matvec::Normed::inverse(scratch.squares, 0, p.hidden, p.epsilon);
        const int i = threadIdx.x, r = first + i;
        if (i < rows && r < all) {
            const float sum = sum_of(results, i), other = sum_of(results, i ^ 1);
            if (kind == QKV) {
                finish_qkv(p, layers[row.layer()], position, inverse, r, sum, other);
            } else if (kind == GATE_UP) {
                finish_gate_up(p.h, inverse, r, sum, other);
            } else if (kind == HEAD) {
                const float logit = sum * inverse;
                if (p.logits) p.logits[r] = logit;
                best = max(best, key_of(r, logit));
            } else {
                p.x[r] = before + sum;
            }
        }
    }

    // This block's best row of the head.
    __device__ __forceinline__ void hand_in() {
        const unsigned long long key = largest_key(best);
        best = 0;
        if (threadIdx.x % 32 == 0) scratch.best[threadIdx.x / 32] = key;
        CONSUMERS_MEET();
        if (threadIdx.x > 0) return;
        unsigned long long top = 0;
        for (int i = 0; i < matvec::WARPS; ++i) top = max(top, scratch.best[i]);
        p.best[blockIdx.x] = top;
    }

    // How many splits have positions: no more than keep all warps of a block busy for a round.
    __device__ __forceinline__ int active_splits() const {
        constexpr int ROUND = attend::WARPS * attend::UNIT, PAGES = ROUND > kv::PAGE_TOKENS ? ROUND / kv::PAGE_TOKENS : 1;
        return min(p.splits, (position / kv::PAGE_TOKENS + PAGES) / PAGES);
    }

    // Items are (kv head, tile of its query heads, split), splits innermost.
    __device__ __forceinline__ void attention(const Row &row) {
        const int group = p.heads / p.kv_heads, tiles = (group + attend::HEADS - 1) / attend::HEADS;
        const int active = active_splits();
        const Cache cache = {layers[row.layer()].pages, p.table, 0, p.kv_heads};
        attend::Shared &shared = *reinterpret_cast<attend::Shared *>(activation);
        await(row);
        for (int item = row.first(); item < row.first() + row.count(); ++item) {
            const int split = item % p.splits, tile = item / p.splits % tiles, kv_head = item / p.splits / tiles;
            const int head = kv_head * group + tile * attend::HEADS;
            const int heads = min(attend::HEADS, group - tile * attend::HEADS);
            const long long at = static_cast<long long>(head) * p.splits + split;
            float *const partial = p.partial + at * HEAD_DIM, *const partial_ml = p.partial_ml + at * 2;
            if (split >= active) continue;
            attend::run(shared, p.q + head * HEAD_DIM, cache, 0, kv_head, heads, position, split, active);
            CONSUMERS_MEET();
            attend::merge(shared, partial, partial_ml, heads, p.splits);
            if (item + 1 < row.first() + row.count()) CONSUMERS_MEET();  // the next one uses the same memory
        }
        signal(row);
    }

    // The token's id, in every block alike.
    __device__ __forceinline__ void next(const Row &row) {
        await(row);
        unsigned long long key = 0;
        for (int i = threadIdx.x % 32; i < gridDim.x; i += 32) key = max(key, p.best[i]);
        key = largest_key(key);
        // No logit was a number: any id is as good, but it must exist.
        id = min(0xffffffffu - static_cast<unsigned>(key), static_cast<unsigned>(p.vocabulary - 1));
        ++position;
        if (blockIdx.x == 0 && threadIdx.x == 0)
            ptx::store_system(p.ring + static_cast<long long>(count % p.ring_slots) * p.ring_stride, id);
        ++count;
    }

    // Leave everything as the kernels of single steps do. Nobody reads x any more: all have handed in their best row.
    __device__ __forceinline__ void end() {
        if (blockIdx.x > 0) return;
        embed(p, id);
        if (threadIdx.x == 0) *p.token = id, *p.position = position, *p.count = count;
    }
};

}  // namespace persistent

KERNEL(persistent::THREADS, 1, decode_persistent, PersistentParams) {
    using namespace persistent;
    DYNAMIC_SHARED(unsigned char, shared);
    Scratch &scratch = *reinterpret_cast<Scratch *>(shared + p.scratch_at);
    const int first = p.offsets[blockIdx.x], rows = p.offsets[blockIdx.x + 1] - first;
    int *const words = reinterpret_cast<int *>(shared);
    for (int i = threadIdx.x; i < rows * ROW_WORDS; i += THREADS) words[i] = p.rows[first * ROW_WORDS + i];
    unsigned long long *const layers = reinterpret_cast<unsigned long long *>(shared + p.layers_at);
    for (int i = threadIdx.x; i < p.layer_count * static_cast<int>(sizeof(PersistentLayer) / 8); i += THREADS)
        layers[i] = reinterpret_cast<const unsigned long long *>(p.layers)[i];
    if (threadIdx.x == 0) {
        for (int team = 0; team < TEAMS; ++team) Ring(p, shared, team).begin();
    }
    __syncthreads();
    if (threadIdx.x >= CONSUMERS) {
        Producer(p, shared).run(words, rows, reinterpret_cast<const PersistentLayer *>(layers));
    } else {
        Consumer(p, shared, scratch).run(words, rows);
    }
}
