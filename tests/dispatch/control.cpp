/// The negative control of the dispatch test: what it must reject, and what it must not.
#include <functional>
#include <memory>

struct animal {
    animal() = default;
    animal(const animal&) = delete;
    animal& operator=(const animal&) = delete;
    virtual ~animal() = default;
    virtual int legs() = 0;
};

extern "C" {
int outside(int);

int indirect_virtual_call(animal& a) { return a.legs() + 1; }
int indirect_virtual_tail_call(animal& a) { return a.legs(); }
int indirect_function_pointer(int (*f)(int), int x) { return f(x) * 2; }
int indirect_tail_call(int (*f)(int), int x) { return f(x); }
int indirect_std_function(const std::function<int(int)>& f, int x) { return f(x) * 3; }
void indirect_deleter(std::shared_ptr<int>& p) { p.reset(); }

extern int (*const operations[4])(int);
int indirect_table_of_functions(unsigned i, int x) { return operations[i & 3](x) + 1; }

int direct_call(int x) { return outside(x) + outside(x + 1); }

/// Compiled to a jump table: each case calls something else.
int direct_switch(int which, int x) {
    switch (which) {
    case 0:
        return outside(x);
    case 1:
        return outside(x * 3) + 7;
    case 2:
        return outside(x - 5) ^ 9;
    case 3:
        return outside(x / 3) + outside(x);
    case 4:
        return outside(x | 0x40) * 5;
    case 5:
        return outside(~x);
    case 6:
        return outside(x << 2) - 1;
    case 7:
        return outside(x % 11);
    default:
        return 0;
    }
}
}
