/// A large array of which only the pages that are used cost memory.
#pragma once

#include <array>
#include <cstddef>
#include <cstdlib>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#elif defined(_WIN32)
#include <vm_accel/os/windows_calls.hpp>
#endif

namespace vm_accel::inline v0::os {

/// Elements that are all zero bytes at first. Address space for all of them is
/// reserved at once; memory comes page by page, with the first write to each.
/// Reading what was never written costs no memory. No huge pages: one write
/// would cost 2 MiB. No constructor of an element runs, and no destructor.
///
/// Where the system has no such mapping, the array is allocated whole.
/// Threads: reserve() once, before others know the object.
template <class T>
class reserved_array {
    static_assert(alignof(T) <= alignof(std::max_align_t));

public:
    reserved_array() noexcept = default;
    reserved_array(const reserved_array&) = delete;
    reserved_array& operator=(const reserved_array&) = delete;
    ~reserved_array() { release(); }

    /// False = the system refuses that much; then there are no elements. May be
    /// called again, which forgets the elements of before.
    [[nodiscard]] bool reserve(std::size_t count) noexcept {
        release();
        if (count == 0 || count > ~std::size_t{0} / element_bytes) return false;
#if defined(__unix__) || defined(__APPLE__)
        int flags = MAP_PRIVATE | MAP_ANON;
#if defined(MAP_NORESERVE)
        flags |= MAP_NORESERVE;
#endif
        void* const mapped =
            ::mmap(nullptr, count * element_bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
        if (mapped == MAP_FAILED) return false;
#if defined(MADV_NOHUGEPAGE)
        // Refused where there are no huge pages to begin with.
        (void)::madvise(mapped, count * element_bytes, MADV_NOHUGEPAGE);
#endif
        data_ = static_cast<T*>(mapped);
#elif defined(_WIN32)
        // Counted against the page file as a whole; pages come with the first touch.
        data_ = static_cast<T*>(
            ::VirtualAlloc(nullptr, count * element_bytes,
                           windows_abi::allocate_reserve | windows_abi::allocate_commit,
                           windows_abi::page_read_write));
        if (data_ == nullptr) return false;
#else
        data_ = static_cast<T*>(std::calloc(count, element_bytes));
        if (data_ == nullptr) return false;
#endif
        size_ = count;
        return true;
    }

    /// Elements reserved, 0 before.
    [[nodiscard]] std::size_t size() const noexcept { return size_; }
    [[nodiscard]] T* data() const noexcept { return data_; }
    [[nodiscard]] T& operator[](std::size_t i) noexcept { return data_[i]; }
    [[nodiscard]] const T& operator[](std::size_t i) const noexcept { return data_[i]; }

private:
    static constexpr std::size_t element_bytes = sizeof(std::array<T, 1>); ///< T may be a pointer
    void release() noexcept {
        if (data_ == nullptr) return;
#if defined(__unix__) || defined(__APPLE__)
        (void)::munmap(static_cast<void*>(data_), size_ * element_bytes);
#elif defined(_WIN32)
        (void)::VirtualFree(data_, 0, windows_abi::free_release);
#else
        std::free(data_);
#endif
        data_ = nullptr;
        size_ = 0;
    }

    T* data_ = nullptr;
    std::size_t size_ = 0;
};

} // namespace vm_accel::inline v0::os
