// Registration of barrier sites when a module is loaded, whether or not a thread ever comes by.
#pragma once

#include "threads.h"

namespace simt {

static Site *module_sites = nullptr;
static __thread char module_shared;

template <class Place>
struct Registered {
    struct Entry : Site {
        Entry() : Site{Place::file(), Place::line(), Place::kind(), module_sites, false, false} { module_sites = this; }
    };
    static Entry entry;
};
template <class Place>
typename Registered<Place>::Entry Registered<Place>::entry;

static void *shared_of_this_thread() { return &module_shared; }

}  // namespace simt

extern "C" SIMT_EXPORT const simt::ModuleInfo simt_module;
const simt::ModuleInfo simt_module = {SIMT_ABI, &simt::module_sites, simt::shared_of_this_thread};

// The lambda gives every place a type of its own, also inside templates and inlined functions.
#define SIMT_SITE(text)                                       \
    ([]() -> ::simt::Site * {                                 \
        struct Place {                                        \
            static const char *file() { return __FILE__; }    \
            static int line() { return __LINE__; }            \
            static const char *kind() { return text; }        \
        };                                                    \
        return &::simt::Registered<Place>::entry;             \
    }())
