"""Defects that scripts/fuzz --mutants plants: name, file under include/vm_accel, the line as it is,
the line with the defect, the fuzzer that must find it."""

TLB = "smmu/caches/set_associative.hpp"
CONTEXTS = "smmu/caches/context_table.hpp"
SLOTS = "smmu/caches/configuration_cache.hpp"
TRANSLATOR = "smmu/translation/translator.hpp"
WALKS = "smmu/caches/walk_cache.hpp"
WALK = "smmu/translation/page_walker.hpp"
MEMORY = "guest/region_map.hpp"
EXECUTOR = "smmu/executor.hpp"
CONTROL = "smmu/control/control_plane.hpp"

MUTANTS = [
    ("a hit ignores the permission", TLB,
     "if ((static_cast<std::uint8_t>(word) & asked) != 0) [[unlikely]]",
     "if ((static_cast<std::uint8_t>(word) & asked & not_memory) != 0) [[unlikely]]", "tables"),
    ("a hit counts its offset from the page, not the entry", TLB,
     "reinterpret_cast<std::byte*>(address + distance)",
     "reinterpret_cast<std::byte*>((address & ~0x1f'f000ULL) + distance)", "tables"),
    ("an entry starts at the wrong output", TRANSLATOR,
     "entry.output = raw(base);", "entry.output = raw(output);", "tables"),
    ("a piece of a page is cut at the wrong place", TRANSLATOR,
     "entry.base = address & ~(size - 1);",
     "entry.base = address & ~((std::uint64_t{2} << size_log2) - 1);", "tables"),
    ("TLBI_NSNH_ALL does nothing", CONTEXTS,
     "bump(worlds_[static_cast<std::size_t>(scope.tag.world)]);", "", "tables"),
    ("generations are never swept", CONTEXTS,
     "return ++invalidations_ % period == 0;", "return false;", "tables"),
    ("a nested page allows what stage 1 allows", WALK,
     "r.allowed = permissions{stage1.allowed.bits() & stage2.allowed.bits()};",
     "r.allowed = stage1.allowed;", "tables"),
    ("CMD_CFGI_STE_RANGE leaves what is decoded", CONTROL,
     "executor.forget_streams(action.first_stream, action.last_stream);", "", "tables"),
    ("an emptied slot keeps its configuration", SLOTS,
     "const std::uintptr_t old = slot.word_.exchange(slot.emptied_, std::memory_order_seq_cst);",
     "const std::uintptr_t old = slot.emptied_;", "tables"),
    ("a nested page is as large as stage 1 says", WALK,
     "r.size_log2 = std::min(stage1.size_log2, stage2.size_log2);",
     "r.size_log2 = stage1.size_log2;", "tables"),
    ("a walk starts at any context's table", WALKS,
     "if (static_cast<std::uint32_t>(state) != owner.tag) [[unlikely]]",
     "if (shared_state::is_empty(state)) [[unlikely]]", "tables"),
    ("memory is reached before its region is found", MEMORY,
     "if (run.bytes == 0 || (raw(address) & 7) != 0) [[unlikely]]",
     "if ((raw(address) & 7) != 0) [[unlikely]]", "tables"),
    ("a prefetch looks at every page that it names", EXECUTOR,
     "i < std::min(action.pages, most); ++i", "i < action.pages; ++i", "commands"),
    ("a command that is illegal is executed over and over", CONTROL,
     "\n                out |= queue.stop(spec::CERROR_ILL);",
     "\n                out.wake_poll = true;", "commands"),
    ("a look-up takes any way of a set", TLB,
     "if (static_cast<std::uint32_t>(state) != by.tag()) [[unlikely]]",
     "if ((state & tags) < 3) [[unlikely]]", "tables"),
    ("an address that matches in part is a hit", "smmu/caches/prepared_key.hpp",
     "return first ^ salt_;", "return (first & 0xffff'ffff) ^ salt_;",
     "tables"),
]
