//! Trees of the shapes that hosts have: names, numbers, ranges, links and what is missing are those of recordings in public
//! issues and of the kernel's drivers; the counters' values are made.
//!
//! | tree | whose shape |
//! |---|---|
//! | [`CLIENT`] | a notebook with a Core i7-8550U: package, core, uncore, dram and psys, the package once more by memory-mapped registers, which made powerstat (its issue 4) count it twice; the zones as powercap's issues 2 and 3 list them |
//! | [`HASWELL`] | a Core i7-4770S with an older kernel, whose ranges are rounded otherwise (thermald's issue 45); no psys |
//! | [`SERVER`] | two sockets with a range of their own for memory, which counts in 15.3 uJ |
//! | [`SAPPHIRE`] | Xeons since Sapphire Rapids: psys takes a number between the packages', counts whole joules and has the range of that (powertelemetry's issues 3 and 10) |
//! | [`DIES`] | Cascade Lake AP: each die of a package counts by itself (raplcap's issue 9, the kernel's `intel_rapl_common.c` and `rapl.c`) |
//! | [`AMD`] | EPYC: the same names, the range of 15.3 uJ, no memory; sockets and cores by hwmon (amd_energy) too |
//! | [`XEN`] | a virtual machine under Xen: each virtual processor a package (node_exporter's issue 1808), all of them one counter |
//! | [`VIRTUAL`] | a virtual machine whose counter never moves; a platform event; a graphics card with a counter of its own |

/// A notebook.
pub const CLIENT: &str = "
    class/powercap/intel-rapl/enabled = 1
    class/powercap/intel-rapl:0/name = package-0
    class/powercap/intel-rapl:0/enabled = 1
    class/powercap/intel-rapl:0/energy_uj = 142033121953
    class/powercap/intel-rapl:0/max_energy_range_uj = 262143328850
    class/powercap/intel-rapl:0/constraint_0_name = long_term
    class/powercap/intel-rapl:0:0/name = core
    class/powercap/intel-rapl:0:0/energy_uj = 85931004395
    class/powercap/intel-rapl:0:0/max_energy_range_uj = 262143328850
    class/powercap/intel-rapl:0:1/name = uncore
    class/powercap/intel-rapl:0:1/energy_uj = 1182374876
    class/powercap/intel-rapl:0:1/max_energy_range_uj = 262143328850
    class/powercap/intel-rapl:0:2/name = dram
    class/powercap/intel-rapl:0:2/energy_uj = 22969474853
    class/powercap/intel-rapl:0:2/max_energy_range_uj = 262143328850
    class/powercap/intel-rapl:1/name = psys
    class/powercap/intel-rapl:1/energy_uj = 209715200123
    class/powercap/intel-rapl:1/max_energy_range_uj = 262143328850
    class/powercap/intel-rapl-mmio/enabled = 0
    class/powercap/intel-rapl-mmio:0/name = package-0
    class/powercap/intel-rapl-mmio:0/energy_uj = 142033121953
    class/powercap/intel-rapl-mmio:0/max_energy_range_uj = 262143328850
    class/powercap/dtpm/enabled = 1
";

/// A desktop of 2013, with the ranges of its kernel.
pub const HASWELL: &str = "
    class/powercap/intel-rapl:0/name = package-0
    class/powercap/intel-rapl:0/energy_uj = 262143900000
    class/powercap/intel-rapl:0/max_energy_range_uj = 262143999938
    class/powercap/intel-rapl:0:0/name = core
    class/powercap/intel-rapl:0:0/energy_uj = 113000000000
    class/powercap/intel-rapl:0:0/max_energy_range_uj = 262143999938
    class/powercap/intel-rapl:0:1/name = uncore
    class/powercap/intel-rapl:0:1/energy_uj = 31000000000
    class/powercap/intel-rapl:0:1/max_energy_range_uj = 262143999938
    class/powercap/intel-rapl:0:2/name = dram
    class/powercap/intel-rapl:0:2/energy_uj = 2469474853
    class/powercap/intel-rapl:0:2/max_energy_range_uj = 262143999938
";

/// Two sockets with memory of their own, by powercap and by perf.
pub const SERVER: &str = "
    class/powercap/intel-rapl:0/name = package-0
    class/powercap/intel-rapl:0/energy_uj = 262143328000
    class/powercap/intel-rapl:0/max_energy_range_uj = 262143328850
    class/powercap/intel-rapl:0:0/name = dram
    class/powercap/intel-rapl:0:0/energy_uj = 65712991000
    class/powercap/intel-rapl:0:0/max_energy_range_uj = 65712999613
    class/powercap/intel-rapl:1/name = package-1
    class/powercap/intel-rapl:1/energy_uj = 5000
    class/powercap/intel-rapl:1/max_energy_range_uj = 262143328850
    class/powercap/intel-rapl:1:0/name = dram
    class/powercap/intel-rapl:1:0/energy_uj = 7000
    class/powercap/intel-rapl:1:0/max_energy_range_uj = 65712999613
    bus/event_source/devices/power/type = 22
    bus/event_source/devices/power/cpumask = 0,28
    bus/event_source/devices/power/format/event = config:0-7
    bus/event_source/devices/power/events/energy-pkg = event=0x02
    bus/event_source/devices/power/events/energy-pkg.scale = 2.3283064365386962890625e-10
    bus/event_source/devices/power/events/energy-pkg.unit = Joules
    bus/event_source/devices/power/events/energy-ram = event=0x03
    bus/event_source/devices/power/events/energy-ram.scale = 2.3283064365386962890625e-10
    bus/event_source/devices/power/events/energy-ram.unit = Joules
    devices/system/cpu/cpu0/topology/physical_package_id = 0
    devices/system/cpu/cpu0/topology/die_id = 0
    devices/system/cpu/cpu1/topology/physical_package_id = 0
    devices/system/cpu/cpu1/topology/die_id = 0
    devices/system/cpu/cpu28/topology/physical_package_id = 1
    devices/system/cpu/cpu28/topology/die_id = 0
    devices/system/cpu/cpufreq/boost = 1
    proc/cpuinfo = vendor_id	: GenuineIntel
";

/// Two sockets, and the platform between them.
pub const SAPPHIRE: &str = "
    class/powercap/intel-rapl:0/name = package-0
    class/powercap/intel-rapl:0/energy_uj = 101000000000
    class/powercap/intel-rapl:0/max_energy_range_uj = 262143328850
    class/powercap/intel-rapl:0:0/name = dram
    class/powercap/intel-rapl:0:0/energy_uj = 41000000000
    class/powercap/intel-rapl:0:0/max_energy_range_uj = 262143328850
    class/powercap/intel-rapl:1/name = psys
    class/powercap/intel-rapl:1/energy_uj = 60293987000000
    class/powercap/intel-rapl:1/max_energy_range_uj = 4294967295000000
    class/powercap/intel-rapl:2/name = package-1
    class/powercap/intel-rapl:2/energy_uj = 202000000000
    class/powercap/intel-rapl:2/max_energy_range_uj = 262143328850
    class/powercap/intel-rapl:2:0/name = dram
    class/powercap/intel-rapl:2:0/energy_uj = 52000000000
    class/powercap/intel-rapl:2:0/max_energy_range_uj = 262143328850
    class/powercap/intel-rapl:3/name = psys-1
    class/powercap/intel-rapl:3/energy_uj = 0
    class/powercap/intel-rapl:3/max_energy_range_uj = 4294967295000000
";

/// A socket of two dies, each with its counters, by powercap and by perf.
pub const DIES: &str = "
    class/powercap/intel-rapl:0/name = package-0-die-0
    class/powercap/intel-rapl:0/energy_uj = 101000000000
    class/powercap/intel-rapl:0/max_energy_range_uj = 262143328850
    class/powercap/intel-rapl:1/name = package-0-die-1
    class/powercap/intel-rapl:1/energy_uj = 202000000000
    class/powercap/intel-rapl:1/max_energy_range_uj = 262143328850
    bus/event_source/devices/power/type = 22
    bus/event_source/devices/power/cpumask = 0,24
    bus/event_source/devices/power/events/energy-pkg = event=0x02
    bus/event_source/devices/power/events/energy-pkg.scale = 2.3283064365386962890625e-10
    bus/event_source/devices/power/events/energy-pkg.unit = Joules
    devices/system/cpu/cpu0/topology/physical_package_id = 0
    devices/system/cpu/cpu0/topology/die_id = 0
    devices/system/cpu/cpu24/topology/physical_package_id = 0
    devices/system/cpu/cpu24/topology/die_id = 1
    proc/cpuinfo = vendor_id	: GenuineIntel
";

/// An EPYC host.
pub const AMD: &str = "
    class/powercap/intel-rapl:0/name = package-0
    class/powercap/intel-rapl:0/energy_uj = 65532610000
    class/powercap/intel-rapl:0/max_energy_range_uj = 65532610987
    class/powercap/intel-rapl:0:0/name = core
    class/powercap/intel-rapl:0:0/energy_uj = 4411
    class/powercap/intel-rapl:0:0/max_energy_range_uj = 65532610987
    class/hwmon/hwmon0/name = k10temp
    class/hwmon/hwmon0/temp1_input = 44125
    class/hwmon/hwmon1/name = amd_energy
    class/hwmon/hwmon1/energy1_label = Ecore000
    class/hwmon/hwmon1/energy1_input = 123456
    class/hwmon/hwmon1/energy65_label = Esocket0
    class/hwmon/hwmon1/energy65_input = 7890123
";

/// A virtual machine of three processors.
pub const XEN: &str = "
    class/powercap/intel-rapl:0/name = package-0
    class/powercap/intel-rapl:0/energy_uj = 194127997354
    class/powercap/intel-rapl:0/max_energy_range_uj = 262143328850
    class/powercap/intel-rapl:1/name = package-1
    class/powercap/intel-rapl:1/energy_uj = 194127997354
    class/powercap/intel-rapl:1/max_energy_range_uj = 262143328850
    class/powercap/intel-rapl:2/name = package-2
    class/powercap/intel-rapl:2/energy_uj = 194127997354
    class/powercap/intel-rapl:2/max_energy_range_uj = 262143328850
";

/// A virtual machine whose counter never moves.
pub const VIRTUAL: &str = "
    class/powercap/intel-rapl:0/name = package-0
    class/powercap/intel-rapl:0/energy_uj = 0
    class/powercap/intel-rapl:0/max_energy_range_uj = 262143328850
    bus/event_source/devices/power/type = 11
    bus/event_source/devices/power/cpumask = 0
    bus/event_source/devices/power/events/energy-psys = event=0x05
    bus/event_source/devices/power/events/energy-psys.scale = 2.3283064365386962890625e-10
    bus/event_source/devices/power/events/energy-psys.unit = Joules
    class/hwmon/hwmon3/name = i915
    class/hwmon/hwmon3/energy1_input = 99
";
