// Attention of a prompt's tokens in float32, over a cache of either type: the exact path.
//
// 128 threads, 16 query rows. K and V of a page take turns in the same shared memory.
#include "flash.cuh"
#include "warp.cuh"

namespace flash {

constexpr int THREADS = 128, WARPS = THREADS / 32, ROWS = 16;
constexpr int STRIDE = HEAD_DIM + 4;    // floats; odd in units of 16 bytes, so columns of rows spread over the banks
constexpr int SCORES = PAGE + 4;
constexpr int MINE = HEAD_DIM / 8;      // output values of a thread

// One page's K or V to shared memory as floats, zeros from position `end` on (a cache may hold anything there).
__device__ inline void read_page(float (&to)[PAGE][STRIDE], const FlashParams &p, const Run &run, int page,
                                 int kv_head, int which) {
    constexpr int UNITS = HEAD_DIM / kv::VECTOR;  // of 16 bytes, in a key
    const kv::Stored *from = page_of(p, run, page, kv_head, which);
    for (int piece = threadIdx.x; piece < PAGE * UNITS; piece += THREADS) {
        const int key = piece / UNITS, d = piece % UNITS * kv::VECTOR;
        float value[kv::VECTOR] = {};
        if (page * PAGE + key < run.end) kv::unpack(*reinterpret_cast<const uint4 *>(from + key * HEAD_DIM + d), value);
#pragma unroll
        for (int i = 0; i < kv::VECTOR; i += 4)
            *reinterpret_cast<float4 *>(&to[key][d + i]) =
                make_float4(value[i], value[i + 1], value[i + 2], value[i + 3]);
    }
}

}  // namespace flash

KERNEL(128, 2, flash_f32, FlashParams) {
    using namespace flash;
    __shared__ float tile_kv[PAGE][STRIDE];
    __shared__ float q[ROWS][STRIDE];
    __shared__ float score[ROWS][SCORES];
    __shared__ float factor[ROWS], sum[ROWS];
    const Tile tile(p, ROWS);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int my_row = threadIdx.x / 8, my_d = threadIdx.x % 8;  // of the output
    const float scale = 1.0f / sqrtf(static_cast<float>(HEAD_DIM));

    for (int i = threadIdx.x; i < ROWS * HEAD_DIM; i += THREADS) {
        const int row = i / HEAD_DIM, d = i % HEAD_DIM;
        q[row][d] = tile.real(row) ? p.q[tile.at(p, row) + d] : 0.0f;
    }
    float out[MINE] = {};
    // Rows warp * 4..+3, the same in every lane.
    float largest[4], total[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        largest[i] = minus_infinity();
        total[i] = 0.0f;
    }
    for (int begin = 0; begin < tile.tokens;) {
        const Run run(p, tile, begin);
        begin = run.last;
        int limit[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) limit[i] = run.limit(p, tile, warp * 4 + i);
        for (int page = 0; page * PAGE < run.end; ++page) {
            __syncthreads();  // nobody reads the last page's V any more
            read_page(tile_kv, p, run, page, tile.kv_head, kv::KEY);
            __syncthreads();  // K is whole, and q
            const int key = threadIdx.x % PAGE, first_row = threadIdx.x / PAGE * (ROWS / 2);
            float dot[ROWS / 2] = {};
            for (int d = 0; d < HEAD_DIM; d += 4) {
                const float4 k = *reinterpret_cast<const float4 *>(&tile_kv[key][d]);
#pragma unroll
                for (int i = 0; i < ROWS / 2; ++i) {
                    const float4 a = *reinterpret_cast<const float4 *>(&q[first_row + i][d]);
                    dot[i] = fmaf(a.x, k.x, fmaf(a.y, k.y, fmaf(a.z, k.z, fmaf(a.w, k.w, dot[i]))));
                }
            }
#pragma unroll
            for (int i = 0; i < ROWS / 2; ++i) score[first_row + i][key] = dot[i] * scale;
            __syncthreads();  // scores are whole, and K is read
            read_page(tile_kv, p, run, page, tile.kv_head, kv::VALUE);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                float *mine = score[warp * 4 + i];
                const int seen = limit[i] - page * PAGE;  // keys of this page
                const float low = lane < seen ? mine[lane] : minus_infinity();
                const float high = lane + 32 < seen ? mine[lane + 32] : minus_infinity();
                float top = fmaxf(low, high);
                top = warp::largest(top);
                top = fmaxf(top, largest[i]);
                const float base = top == minus_infinity() ? 0.0f : top;  // a row that sees nothing yet
                const float e = expf(low - base), f = expf(high - base), shrink = expf(largest[i] - base);
                float added = e + f;
                added = warp::sum(added);
                total[i] = total[i] * shrink + added;
                largest[i] = top;
                mine[lane] = e;
                mine[lane + 32] = f;
                if (lane == 0) factor[warp * 4 + i] = shrink;
            }
            __syncthreads();  // V and the weights are whole
            const float shrink = factor[my_row];
#pragma unroll
            for (int j = 0; j < MINE; ++j) out[j] *= shrink;
            for (int k = 0; k < PAGE; ++k) {
                const float weight = score[my_row][k];
#pragma unroll
                for (int j = 0; j < MINE; ++j) out[j] = fmaf(weight, tile_kv[k][my_d + 8 * j], out[j]);
            }
        }
    }
    if (lane < 4) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (lane == i) sum[warp * 4 + i] = total[i];
    }
    __syncwarp();  // a warp's 4 rows are also the rows that its threads write
    if (!tile.real(my_row)) return;
    const float inverse = sum[my_row] > 0.0f ? 1.0f / sum[my_row] : 0.0f;
#pragma unroll
    for (int j = 0; j < MINE; ++j) p.out[tile.at(p, my_row) + my_d + 8 * j] = out[j] * inverse;
}
