/// The library in ten lines: compose, set up, put a device behind the SMMU,
/// let it read memory, print the report.
///
///     quick_start            the report as a table
///     quick_start --json     the report as JSON
///
/// Exits with 0 if everything worked, with 1 and the cause if not.
#include <vm_accel/vm_accel.hpp>

#include <array>
#include <iostream>
#include <string_view>

using namespace vm_accel;

// What this VMM uses. Leave a line out, and what it stands for is not compiled.
using accelerator =
    acceleration_manager<region_map,                                         // guest memory
                         affinity<native_platform>,                          // vCPUs
                         numa_allocator<local_first>,                        // RAM
                         smmu<set_associative<64, 8>, bitmap_streams<256>>>; // devices

int main(int argc, char** argv) {
    const bool json = argc > 1 && std::string_view{argv[1]} == "--json";
    const auto failed = [](const error& why) {
        std::cerr << "quick_start: " << why << '\n';
        return 1;
    };

    static accelerator host;
    if (auto ok = host.setup_full_acceleration({.vcpus = 1}); !ok) return failed(ok.error());

    // A guest's RAM, at the address where arm64 machines have it.
    const auto ram = host.memory().allocate({.bytes = 16u << 20});
    if (!ram) return failed(ram.error());
    const pa_range window{pa{0x4000'0000}, ram->bytes()};
    if (auto ok = host.smmu().add_memory(window.base, ram->data(), window.size); !ok) {
        return failed(ok.error());
    }

    // A disk behind the SMMU, and its way to memory. No guest runs here and no
    // driver has set up tables, so the disk sees memory one to one, as after reset.
    if (auto stream = host.smmu().attach_device("disk", window); !stream) {
        return failed(stream.error());
    }
    {
        auto port = host.smmu().make_port("disk");
        if (!port) return failed(port.error());
        std::array<std::byte, 512> sector{};
        ram->data()[511] = std::byte{0x55};
        const bool inside = port->read(iova{0x4000'0000}, sector);
        const bool outside = port->read(iova{0x9000'0000}, sector);
        if (!inside || outside || sector[511] != std::byte{0x55}) {
            return failed({errc::mismatch, 0, "the disk's DMA did not go where it should", {}});
        }
    }
    if (auto ok = host.vcpus().pin_current_thread(0); !ok) std::cerr << ok.error() << '\n';

    const diagnostic_report report = host.diagnostic_report();
    std::cout << (json ? report.to_json() + '\n' : report.to_table());
    if (auto ok = host.smmu().remove_memory(window.base); !ok) return failed(ok.error());
    return 0;
}
