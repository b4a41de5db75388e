/// Fails if a type of the library has another layout under NDEBUG, or if the control has not.
#include "layout_rows.hpp"

#include <iostream>

int main() {
    const std::vector<layout_row> with = layout_with_ndebug();
    const std::vector<layout_row> without = layout_without_ndebug();
    if (with.size() != without.size() || with.size() < 2) {
        std::cout << "the two lists have " << with.size() << " and " << without.size() << " rows\n";
        return 1;
    }
    int wrong = 0;
    for (std::size_t i = 0; i < with.size(); ++i) {
        const bool is_control = with[i].name == "control";
        if ((with[i] == without[i]) != is_control) continue;
        ++wrong;
        std::cout << with[i].name
                  << (is_control ? ": the control has one layout, so this test sees nothing\n"
                                 : ": its layout depends on NDEBUG\n");
    }
    std::cout << with.size() - 1 << " types and 1 control compared, " << wrong << " wrong\n";
    return wrong == 0 ? 0 : 1;
}
