// Modules: a "cubin" is a shared object for this machine. It is loaded from memory: nothing of it stays on disk.
#include <dlfcn.h>
#include <elf.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <tuple>

#include "driver.h"

namespace simt {

namespace {

#if defined(__x86_64__)
constexpr unsigned machine = EM_X86_64;
#elif defined(__aarch64__)
constexpr unsigned machine = EM_AARCH64;
#else
constexpr unsigned machine = EM_NONE;
#endif
constexpr unsigned cuda_machine = 190;  // EM_CUDA
constexpr size_t largest = size_t(256) << 20;

// The image has no length; an ELF file says its own: here the section headers come last.
CUresult measure(const unsigned char *image, size_t &bytes) {
    Elf64_Ehdr header;
    if (memcmp(image, ELFMAG, SELFMAG) != 0) return CUDA_ERROR_INVALID_IMAGE;
    memcpy(&header, image, sizeof header);
    if (header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_ident[EI_DATA] != ELFDATA2LSB)
        return CUDA_ERROR_INVALID_IMAGE;
    if (header.e_machine == cuda_machine) return CUDA_ERROR_NO_BINARY_FOR_GPU;
    if (header.e_machine != machine || header.e_type != ET_DYN || header.e_shentsize != sizeof(Elf64_Shdr) ||
        header.e_shoff == 0 || header.e_shoff > largest)
        return CUDA_ERROR_INVALID_IMAGE;
    bytes = header.e_shoff + size_t(header.e_shnum) * sizeof(Elf64_Shdr);
    return CUDA_SUCCESS;
}

// Whether all sections lie in the file: a truncated one would bring the loader down.
bool whole(const unsigned char *image, size_t bytes) {
    Elf64_Ehdr header;
    memcpy(&header, image, sizeof header);
    if (header.e_shnum < 2 || header.e_shstrndx >= header.e_shnum) return false;
    const auto *sections = reinterpret_cast<const Elf64_Shdr *>(image + header.e_shoff);
    if (sections[0].sh_type != SHT_NULL || sections[header.e_shstrndx].sh_type != SHT_STRTAB) return false;
    for (unsigned i = 0; i < header.e_shnum; i++)
        if (sections[i].sh_type != SHT_NOBITS && (sections[i].sh_offset > bytes || sections[i].sh_size > bytes))
            return false;
    return true;
}

// Names and sizes of the variables of a thread: what `__shared__` became.
void read_shared(const unsigned char *image, size_t bytes, Module &module) {
    Elf64_Ehdr header;
    memcpy(&header, image, sizeof header);
    const auto *programs = reinterpret_cast<const Elf64_Phdr *>(image + header.e_phoff);
    for (unsigned i = 0; i < header.e_phnum; i++)
        if (programs[i].p_type == PT_TLS) module.shared_bytes = programs[i].p_memsz;
    const auto *sections = reinterpret_cast<const Elf64_Shdr *>(image + header.e_shoff);
    for (unsigned i = 0; i < header.e_shnum; i++) {
        if (sections[i].sh_type != SHT_SYMTAB || sections[i].sh_offset + sections[i].sh_size > bytes) continue;
        const auto *symbols = reinterpret_cast<const Elf64_Sym *>(image + sections[i].sh_offset);
        const char *names = reinterpret_cast<const char *>(image + sections[sections[i].sh_link].sh_offset);
        for (size_t k = 0; k < sections[i].sh_size / sizeof(Elf64_Sym); k++)
            if (ELF64_ST_TYPE(symbols[k].st_info) == STT_TLS && symbols[k].st_size > 0)
                module.shared_symbols.emplace_back(names + symbols[k].st_name, symbols[k].st_size);
    }
}

void collect_sites(Module &module) {
    std::map<std::tuple<std::string, int, std::string>, std::vector<Site *>> places;
    for (Site *site = *module.info->sites; site; site = site->next)
        places[{site->file, site->line, site->kind}].push_back(site);
    for (auto &[place, sites] : places) module.sites.push_back(std::move(sites));
}

}  // namespace

Module::~Module() {
    if (library) dlclose(library);
    if (file >= 0) close(file);
}

CUresult load_module(const void *image, std::unique_ptr<Module> &module) {
    static std::atomic<uint64_t> numbers{0};
    if (!image) return CUDA_ERROR_INVALID_VALUE;
    const auto *raw = static_cast<const unsigned char *>(image);
    size_t bytes = 0;
    if (const CUresult error = measure(raw, bytes)) return error;
    module.reset(new Module());
    module->number = ++numbers;
    module->file = memfd_create("kernels", MFD_CLOEXEC);
    for (size_t done = 0; done < bytes;) {
        const ssize_t written = write(module->file, raw + done, bytes - done);
        if (written <= 0) return errno == EFAULT ? CUDA_ERROR_INVALID_IMAGE : CUDA_ERROR_OUT_OF_MEMORY;
        done += size_t(written);
    }
    if (!whole(raw, bytes)) return CUDA_ERROR_INVALID_IMAGE;
    // The file stays open: the loader knows libraries by name, and the next one must not get the same.
    const std::string path = "/proc/self/fd/" + std::to_string(module->file);
    module->library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!module->library) {
        fprintf(stderr, "custom_cuda emulator: %s\n", dlerror());
        return CUDA_ERROR_INVALID_IMAGE;
    }
    module->info = static_cast<const ModuleInfo *>(dlsym(module->library, "simt_module"));
    if (!module->info || module->info->abi != SIMT_ABI) return CUDA_ERROR_NO_BINARY_FOR_GPU;
    read_shared(raw, bytes, *module);
    collect_sites(*module);
    return CUDA_SUCCESS;
}

CUresult find_function(Module &module, const char *name, Function **function) {
    std::unique_ptr<Function> &entry = module.functions[name];
    if (!entry) {
        const auto *kernel =
            static_cast<const KernelInfo *>(dlsym(module.library, ("simt_kernel_" + std::string(name)).c_str()));
        if (!kernel || kernel->abi != SIMT_ABI) {
            module.functions.erase(name);
            return CUDA_ERROR_NOT_FOUND;
        }
        entry.reset(new Function{kernel, &module, 0});
        // _ZZL<length><kernel>…: variables of the kernel itself. Those of functions that it may call count as well.
        const std::string own = "_ZZL" + std::to_string(strlen(name)) + name + "RK";
        for (const auto &[symbol, bytes] : module.shared_symbols) {
            const bool of_a_kernel = symbol.rfind("_ZZL", 0) == 0 && symbol.find("RK") != std::string::npos;
            if (symbol.rfind(own, 0) == 0 || (!of_a_kernel && symbol.find("module_shared") == std::string::npos))
                entry->static_shared += bytes;
        }
    }
    *function = entry.get();
    return CUDA_SUCCESS;
}

}  // namespace simt
