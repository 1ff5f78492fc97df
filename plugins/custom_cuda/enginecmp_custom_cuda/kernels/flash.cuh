// Which query rows a block of the prefill's attention has, and which of them attend to one sequence's pages.
//
// A block takes tile_tokens tokens and, of one kv head's group of query heads, a slice of `heads` of them:
// row r is token r / heads, head r % heads. Tokens of several sequences are dealt with one run at a time: a run is
// neighbouring tokens of the same slot, and rows outside it are masked while its pages are read.
#pragma once
#include "kernel.h"
#include "kv.cuh"
#include "prefill_params.h"

namespace flash {

constexpr int PAGE = kv::PAGE_TOKENS;

__device__ inline float minus_infinity() { return __uint_as_float(0xff800000u); }

struct Tile {
    int first_token, tokens;  // of the block
    int heads;                // rows a token
    int first_head, last_head;
    int kv_head;

    __device__ Tile(const FlashParams &p, int rows) {
        const int group = p.heads / p.cache.kv_heads;
        heads = min(group, rows);
        // Blocks begin in the order of their indices, and late tokens attend to more: theirs come first, all heads.
        const unsigned across = gridDim.y * gridDim.z;
        const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
        first_token = (gridDim.x - 1 - block / across) * p.tile_tokens;
        tokens = min(min(p.tile_tokens, rows / heads), p.tokens - first_token);
        kv_head = block % across % gridDim.y;
        first_head = kv_head * group + block % across / gridDim.y * heads;
        last_head = min(first_head + heads, (kv_head + 1) * group);
    }

    __device__ bool real(int row) const { return row / heads < tokens && first_head + row % heads < last_head; }
    __device__ int token(int row) const { return first_token + row / heads; }
    // First element of a row in q and out.
    __device__ long long at(const FlashParams &p, int row) const {
        return (static_cast<long long>(token(row)) * p.heads + first_head + row % heads) * HEAD_DIM;
    }
};

struct Run {
    int first, last;  // tokens of the tile, last exclusive
    int slot;
    int end;  // positions of the sequence that are read: 0..end - 1

    __device__ Run(const FlashParams &p, const Tile &tile, int begin) {
        first = last = begin;
        slot = p.slot[tile.first_token + begin];
        end = 0;
        while (last < tile.tokens && p.slot[tile.first_token + last] == slot) {
            end = max(end, p.position[tile.first_token + last] + 1);
            ++last;
        }
    }

    // Positions that a row attends to: 0..limit - 1; none for rows of other runs and for empty tokens.
    __device__ int limit(const FlashParams &p, const Tile &tile, int row) const {
        const int token = row / tile.heads;
        return tile.real(row) && token >= first && token < last ? p.position[tile.first_token + token] + 1 : 0;
    }
};

// One page of a run's sequence: K or V, [64][HEAD_DIM].
__device__ inline const kv::Stored *page_of(const FlashParams &p, const Run &run, int page, int kv_head, int which) {
    const int number = p.cache.table[static_cast<long long>(run.slot) * p.cache.table_stride + page];
    return kv::tokens(p.cache, number, kv_head, which);
}

}  // namespace flash
