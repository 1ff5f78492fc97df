// Attention of a prompt's tokens with tensor cores: q, k, v and the weights in half, sums and softmax in float32.
//
// The order of work is FlashAttention-2's (Dao 2023, arXiv:2307.08691): 4 warps with 16 query rows each, a page of 64
// keys at a time, the output rescaled as the row's maximum grows. A page's V is copied while its scores are made, the
// next page's K while its values are summed.
#include "flash.cuh"
#include "ptx.cuh"
#include "warp.cuh"

namespace flash {

constexpr int THREADS = 128, ROWS = 64;
constexpr int UNITS = HEAD_DIM / 8;               // of 16 bytes, in a key
constexpr int STRIDE = 8 * (UNITS + 1 - UNITS % 2);  // halves; odd in units: 8 rows of an ldmatrix cover all banks
constexpr int SLICES = HEAD_DIM / 16;             // of the length of a head, for one mma
static_assert(HEAD_DIM % 16 == 0 && KV == KV_F16, "whole mma slices of halves");

using Page = unsigned short[PAGE][STRIDE];

// Begin copying one page's K or V; zeros from position `end` on (a cache may hold anything there).
__device__ inline void copy_page(Page &to, const FlashParams &p, const Run &run, int page, int kv_head, int which) {
    static_assert(PAGE * UNITS % THREADS == 0, "");
    const kv::Stored *from = page_of(p, run, page, kv_head, which);
#pragma unroll
    for (int i = 0; i < PAGE * UNITS / THREADS; ++i) {
        const int piece = i * THREADS + threadIdx.x, key = piece / UNITS, d = piece % UNITS * 8;
        ptx::cp_async_16(&to[key][d], from + key * HEAD_DIM + d, page * PAGE + key < run.end);
    }
    ptx::cp_async_commit();
}

__device__ inline unsigned half2(float low, float high) { return ptx::float2_to_half2(low, high); }

// Two rows of a lane: row g and g + 8 of its warp's 16.
struct Rows {
    float out[HEAD_DIM / 8][4];
    float largest[2], total[2];
};

// scores[n]: 16 rows times keys 8 n..8 n + 7 of the page.
__device__ inline void dot(float (&scores)[8][4], const unsigned (&q)[SLICES][4], const Page &k) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < 8; n += 2)
#pragma unroll
        for (int slice = 0; slice < SLICES; ++slice) {
            unsigned b[4];
            ptx::ldmatrix_x4(b, &k[n * 8 + lane / 16 * 8 + lane % 8][slice * 16 + lane / 8 % 2 * 8]);
            const unsigned near[2] = {b[0], b[1]}, far[2] = {b[2], b[3]};
            ptx::mma_f16(scores[n], q[slice], near);
            ptx::mma_f16(scores[n + 1], q[slice], far);
        }
}

// Scores become weights, powers of 2 by `scale`; what was summed shrinks where a row's maximum grew.
__device__ inline void weigh(float (&scores)[8][4], Rows &rows, const int (&seen)[2], float scale) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        float top = rows.largest[i];
#pragma unroll
        for (int n = 0; n < 8; ++n)
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                float &score = scores[n][2 * i + j];
                score = n * 8 + lane % 4 * 2 + j < seen[i] ? score : minus_infinity();
                top = fmaxf(top, score);
            }
        top = warp::largest<4>(top);
        const float base = top == minus_infinity() ? 0.0f : top;  // a row that sees nothing yet
        const float shrink = ptx::exp2_approx((rows.largest[i] - base) * scale), zero = -base * scale;
        rows.largest[i] = top;
        float added = 0.0f;
#pragma unroll
        for (int n = 0; n < 8; ++n)
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                float &score = scores[n][2 * i + j];
                score = ptx::exp2_approx(fmaf(score, scale, zero));
                added += score;
            }
        rows.total[i] = rows.total[i] * shrink + added;  // this lane's keys only
#pragma unroll
        for (int n = 0; n < HEAD_DIM / 8; ++n) {
            rows.out[n][2 * i] *= shrink;
            rows.out[n][2 * i + 1] *= shrink;
        }
    }
}

__device__ inline void sum_values(Rows &rows, const float (&weights)[8][4], const Page &v) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int slice = 0; slice < 4; ++slice) {  // of 16 keys
        const float(&low)[4] = weights[2 * slice], (&high)[4] = weights[2 * slice + 1];
        const unsigned a[4] = {half2(low[0], low[1]), half2(low[2], low[3]), half2(high[0], high[1]),
                               half2(high[2], high[3])};
#pragma unroll
        for (int n = 0; n < HEAD_DIM / 8; n += 2) {
            unsigned b[4];
            ptx::ldmatrix_x4_trans(b, &v[slice * 16 + lane % 16][n * 8 + lane / 16 * 8]);
            const unsigned near[2] = {b[0], b[1]}, far[2] = {b[2], b[3]};
            ptx::mma_f16(rows.out[n], a, near);
            ptx::mma_f16(rows.out[n + 1], a, far);
        }
    }
}

}  // namespace flash

KERNEL(128, HEAD_DIM <= 64 ? 3 : 2, flash_f16, FlashParams) {
    using namespace flash;
    __shared__ __align__(16) Page k;
    __shared__ __align__(16) Page v;
    const Tile tile(p, ROWS);
    const int lane = threadIdx.x % 32, top_row = threadIdx.x / 32 * 16 + lane / 4;
    const float scale = 1.44269504088896341f / sqrtf(static_cast<float>(HEAD_DIM));  // log2(e)

    unsigned q[SLICES][4] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = top_row + half * 8;
        if (!tile.real(row)) continue;
        const float *from = p.q + tile.at(p, row) + lane % 4 * 2;
#pragma unroll
        for (int slice = 0; slice < SLICES; ++slice)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const float2 pair = *reinterpret_cast<const float2 *>(from + slice * 16 + i * 8);
                q[slice][i * 2 + half] = half2(pair.x, pair.y);
            }
    }
    Rows rows = {};
    rows.largest[0] = rows.largest[1] = minus_infinity();
    for (int begin = 0; begin < tile.tokens;) {
        const Run run(p, tile, begin);
        begin = run.last;
        if (run.end == 0) continue;
        const int limit[2] = {run.limit(p, tile, top_row), run.limit(p, tile, top_row + 8)};
        copy_page(k, p, run, 0, tile.kv_head, kv::KEY);
        for (int page = 0; page * PAGE < run.end; ++page) {
            ptx::cp_async_wait<0>();
            __syncthreads();  // K is whole, and nobody reads the last page's V any more
            copy_page(v, p, run, page, tile.kv_head, kv::VALUE);
            float scores[8][4] = {};
            dot(scores, q, k);
            ptx::cp_async_wait<0>();
            __syncthreads();  // V is whole, and K is read
            if ((page + 1) * PAGE < run.end) copy_page(k, p, run, page + 1, tile.kv_head, kv::KEY);
            const int seen[2] = {limit[0] - page * PAGE, limit[1] - page * PAGE};
            weigh(scores, rows, seen, scale);
            sum_values(rows, scores, v);
        }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const float total = warp::sum<4>(rows.total[i]);
        const float inverse = total > 0.0f ? 1.0f / total : 0.0f;
        const int row = top_row + i * 8;
        if (!tile.real(row)) continue;
        float *to = p.out + tile.at(p, row) + lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < HEAD_DIM / 8; ++n) {
            const float2 pair = make_float2(rows.out[n][2 * i] * inverse, rows.out[n][2 * i + 1] * inverse);
            *reinterpret_cast<float2 *>(to + n * 8) = pair;
        }
    }
}
