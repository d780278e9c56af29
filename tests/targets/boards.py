"""Boards as their files and tools tell of them: small trees for tests, laid out as the kernel's and the makers' documents say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from edgesdk_targets.board_facts import System

PI_5_ADC = """\
 3V7_WL_SW_A current(0)=0.09661140A
   3V3_SYS_A current(1)=0.09563490A
   1V8_SYS_A current(2)=0.17078430A
  DDR_VDD2_A current(3)=0.03708594A
  DDR_VDDQ_A current(4)=0.00000000A
   1V1_SYS_A current(5)=0.18346200A
    0V8_SW_A current(6)=0.33276860A
  VDD_CORE_A current(7)=1.24730000A
   3V3_DAC_A current(17)=0.00006105A
   3V3_ADC_A current(18)=0.00054945A
   0V8_AON_A current(16)=0.00561050A
      HDMI_A current(22)=0.01318680A
 3V7_WL_SW_V volt(8)=3.69269400V
   3V3_SYS_V volt(9)=3.30867600V
   1V8_SYS_V volt(10)=1.79706900V
  DDR_VDD2_V volt(11)=1.10402700V
  DDR_VDDQ_V volt(12)=0.60073160V
   1V1_SYS_V volt(13)=1.10403000V
    0V8_SW_V volt(14)=0.80147400V
  VDD_CORE_V volt(15)=0.87310000V
   3V3_DAC_V volt(20)=3.30829900V
   3V3_ADC_V volt(21)=3.30600000V
   0V8_AON_V volt(19)=0.79662000V
      HDMI_V volt(23)=5.14134000V
     EXT5V_V volt(24)=5.13792000V
      BATT_V volt(25)=0.00000000V
"""
"""`vcgencmd pmic_read_adc`: EXT5V and BATT have no current."""
MEMINFO = """\
MemTotal:        {total} kB
MemFree:          100000 kB
MemAvailable:    {available} kB
SwapTotal:        102396 kB
SwapFree:          92396 kB
"""
ARMV8_2 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
L4T = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025"


class Board:
    """A tree below `root`, and what its commands print. Both may be changed while it is looked at."""

    def __init__(self, root: Path, files: Mapping[str, str | int], commands: Mapping[str, str]) -> None:
        self.root, self.commands, self.asked = root, dict(commands), list[str]()
        for path, content in files.items():
            self.write(path, content)

    @property
    def system(self) -> System:
        return System(self.root, self._run)

    def write(self, path: str, content: str | int) -> None:
        """As the kernel shows it: a line."""
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"{content}\n", encoding="utf-8")

    def _run(self, command: Sequence[str]) -> str:
        self.asked.append(" ".join(command))
        return self.commands.get(" ".join(command), "")


def cpuinfo(part: str, features: str, count: int, model: str = "") -> str:
    """/proc/cpuinfo of an arm64 Linux."""
    one = f"BogoMIPS\t: 108.00\nFeatures\t: {features}\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
    one += f"CPU variant\t: 0x0\nCPU part\t: {part}\nCPU revision\t: 3\n"
    return "".join(f"processor\t: {cpu}\n{one}\n" for cpu in range(count)) + (f"Model\t\t: {model}\n" if model else "")


def policy(first: int, cpus: Sequence[int], low: int, high: int, now: int, governor: str) -> dict[str, str | int]:
    """/sys/devices/system/cpu/cpufreq/policyN; kHz."""
    folder = f"sys/devices/system/cpu/cpufreq/policy{first}"
    return {
        f"{folder}/related_cpus": " ".join(map(str, cpus)), f"{folder}/cpuinfo_min_freq": low, f"{folder}/cpuinfo_max_freq": high,
        f"{folder}/scaling_max_freq": high, f"{folder}/scaling_cur_freq": now, f"{folder}/scaling_governor": governor,
    }  # fmt: skip


def pi_4(root: Path) -> Board:
    model = "Raspberry Pi 4 Model B Rev 1.4"
    files: dict[str, str | int] = {
        "proc/device-tree/model": model + "\0", "proc/cpuinfo": cpuinfo("0xd08", "fp asimd evtstrm crc32 cpuid", 4, model),
        "proc/meminfo": MEMINFO.format(total=3884360, available=3411652), "proc/loadavg": "0.52 0.58 0.59 1/230 4211",
        **policy(0, range(4), 600000, 1800000, 600000, "ondemand"),
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal", "sys/class/thermal/thermal_zone0/temp": 48312,
        "sys/class/thermal/cooling_device0/type": "gpio-fan", "sys/class/thermal/cooling_device0/cur_state": 1,
    }  # fmt: skip
    commands = {
        "vcgencmd get_throttled": "throttled=0x0\n", "vcgencmd measure_temp": "temp=48.3'C\n",
        "vcgencmd measure_clock arm": "frequency(48)=600117184\n",
        "vcgencmd pmic_read_adc": 'error=1 error_msg="Command not registered"\n',
    }  # fmt: skip
    return Board(root, files, commands)


def pi_5(root: Path) -> Board:
    model = "Raspberry Pi 5 Model B Rev 1.0"
    files: dict[str, str | int] = {
        "proc/device-tree/model": model + "\0", "proc/cpuinfo": cpuinfo("0xd0b", ARMV8_2, 4, model),
        "proc/meminfo": MEMINFO.format(total=8255072, available=7410000), "proc/loadavg": "0.01 0.02 0.00 1/199 1200",
        **policy(0, range(4), 1500000, 2400000, 2400000, "performance"),
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal", "sys/class/thermal/thermal_zone0/temp": 52350,
        "sys/class/thermal/cooling_device0/type": "pwm-fan", "sys/class/thermal/cooling_device0/cur_state": 2,
        "sys/class/hwmon/hwmon0/name": "cpu_thermal", "sys/class/hwmon/hwmon0/temp1_input": 52350,
    }  # fmt: skip
    commands = {
        "vcgencmd get_throttled": "throttled=0x0\n", "vcgencmd measure_temp": "temp=52.1'C\n",
        "vcgencmd measure_clock arm": "frequency(0)=2400033792\n", "vcgencmd pmic_read_adc": PI_5_ADC,
    }  # fmt: skip
    return Board(root, files, commands)


def orin_nano(root: Path) -> Board:
    """JetPack 6: two clusters of Cortex-A78AE, one INA3221 whose first channel is all that comes in."""
    hwmon = "sys/class/hwmon/hwmon1"
    files: dict[str, str | int] = {
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
        "proc/cpuinfo": cpuinfo("0xd42", f"{ARMV8_2} uscat ilrcpc flagm", 6),
        "proc/meminfo": MEMINFO.format(total=7802712, available=5210044), "proc/loadavg": "0.20 0.10 0.05 1/310 2000",
        "etc/nv_tegra_release": L4T,
        "usr/local/cuda/version.json": '{"cuda" : {"name" : "CUDA SDK", "version" : "12.6.11"}}',
        "usr/lib/aarch64-linux-gnu/libnvinfer.so.10": "", "usr/lib/aarch64-linux-gnu/libnvinfer.so.10.3.0": "",
        **policy(0, range(4), 115200, 1510400, 1510400, "schedutil"), **policy(4, (4, 5), 115200, 1510400, 729600, "schedutil"),
        "sys/class/devfreq/17000000.gpu/cur_freq": 624750000,
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal", "sys/class/thermal/thermal_zone0/temp": 47687,
        "sys/class/thermal/thermal_zone1/type": "gpu-thermal", "sys/class/thermal/thermal_zone1/temp": 49500,
        "sys/class/thermal/thermal_zone2/type": "cv0-thermal", "sys/class/thermal/thermal_zone2/temp": "",
        "sys/class/thermal/cooling_device0/type": "pwm-fan", "sys/class/thermal/cooling_device0/cur_state": 1,
        "sys/class/thermal/cooling_device1/type": "cpufreq-cpu0", "sys/class/thermal/cooling_device1/cur_state": 0,
        "sys/class/hwmon/hwmon0/name": "pwmfan", f"{hwmon}/name": "ina3221",
        f"{hwmon}/in1_label": "VDD_IN", f"{hwmon}/in1_enable": 1, f"{hwmon}/in1_input": 5040, f"{hwmon}/curr1_input": 960,
        f"{hwmon}/in2_label": "VDD_CPU_GPU_CV", f"{hwmon}/in2_enable": 1, f"{hwmon}/in2_input": 5032, f"{hwmon}/curr2_input": 176,
        f"{hwmon}/in3_label": "VDD_SOC", f"{hwmon}/in3_enable": 1, f"{hwmon}/in3_input": 5032, f"{hwmon}/curr3_input": 288,
        f"{hwmon}/in4_input": 4800, f"{hwmon}/in7_label": "sum of shunt voltages", f"{hwmon}/in7_input": 7120,
        "sys/class/hwmon/hwmon2/name": "soctherm_oc", "sys/class/hwmon/hwmon2/oc1_event_cnt": 0,
        "sys/class/hwmon/hwmon2/oc3_event_cnt": 2,
    }  # fmt: skip
    commands = {
        "nvpmodel -q": "NVPM WARN: fan mode is not set!\nNV Power Mode: 15W\n0\n",
        "dpkg-query -W -f=${Version} nvidia-jetpack": "6.2+b77",
    }
    return Board(root, files, commands)


BOARDS: dict[str, Callable[[Path], Board]] = {
    "raspberry-pi-4": pi_4, "raspberry-pi-5": pi_5, "jetson-orin-nano": orin_nano,
}  # fmt: skip
