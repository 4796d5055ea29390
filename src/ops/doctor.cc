#include "nibble/ops.h"

namespace nibble {

DoctorReport doctor() {
  DoctorReport report;
  report.cpu = Device::this_cpu();
  report.cuda = "not built";
  return report;
}

}  // namespace nibble
