// Shared memory of a block: fresh, poisoned, with red zones around what the launch asked for.
#include <link.h>
#include <sys/mman.h>

#include <cstring>
#include <new>

#include "block.h"

namespace simt {

void *dynamic_shared() { return running_block->shared; }

namespace {
struct TlsSearch {
    const void *inside;
    size_t bytes;
    char *found;
};

int find_tls(dl_phdr_info *info, size_t, void *argument) {
    TlsSearch &search = *static_cast<TlsSearch *>(argument);
    if (!info->dlpi_tls_data) return 0;
    char *const data = static_cast<char *>(info->dlpi_tls_data);
    if (search.inside < data || search.inside >= data + search.bytes) return 0;
    search.found = data;
    return 1;
}
}  // namespace

// Shared memory is undefined when a block begins: all ones is NaN and -1.
void Block::prepare_shared() {
    const size_t bytes = (grid->shared_bytes + 127) / 128 * 128;
    const size_t wanted = (bytes + page - 1) / page * page + 2 * page;  // a page that faults after the end
    if (shared_mapping_bytes < wanted) {
        if (shared_mapping) munmap(shared_mapping, shared_mapping_bytes);
        void *mapped = mmap(nullptr, wanted, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (mapped == MAP_FAILED) throw std::bad_alloc();
        shared_mapping = static_cast<char *>(mapped);
        shared_mapping_bytes = wanted;
        mprotect(shared_mapping + wanted - page, page, PROT_NONE);
    }
    shared = shared_mapping + shared_mapping_bytes - page - bytes;
    memset(shared, 0xff, grid->shared_bytes);
    memset(shared + grid->shared_bytes, red_zone, bytes - grid->shared_bytes);
    memset(shared - 256, red_zone, 256);
    if (grid->module_shared_bytes == 0) return;
    // Of this OS thread; a block may run on another one next time.
    static __thread uint64_t module_shared_of = 0;
    static __thread char *module_shared = nullptr;
    if (module_shared_of != grid->module_number) {
        TlsSearch search = {grid->module->shared(), grid->module_shared_bytes, nullptr};
        dl_iterate_phdr(find_tls, &search);
        module_shared = search.found;
        module_shared_of = grid->module_number;
    }
    if (module_shared) memset(module_shared, 0xff, grid->module_shared_bytes);
}

// Whether a block wrote around its dynamic shared memory.
void Block::check_shared() {
    const char *const end = shared_mapping + shared_mapping_bytes - page;
    for (const char *at = shared - 256; at < end; at++) {
        if (at == shared) at += grid->shared_bytes;
        if (at >= end) break;
        if (*reinterpret_cast<const unsigned char *>(at) == red_zone) continue;
        grid->fail(700, "block (%u,%u,%u): wrote outside its %u bytes of dynamic shared memory, at offset %td", index.x,
                   index.y, index.z, grid->shared_bytes, at - shared);
        break;
    }
}

}  // namespace simt
