// What LAMMPS calls when it loads the plugin: the pair style is registered, if it was compiled for the LAMMPS that asks.
#include <mpi.h>

#include <cstdio>
#include <cstring>

#include "lammps.h"
#include "pair_snnp.h"

using namespace LAMMPS_NS;

// As LAMMPS's lammpsplugin.h has it, which its installations do not.
extern "C" {
struct lammpsplugin_t {
  const char *version, *style, *name, *info, *author;
  union {
    void *(*v1)(void *);
    void *(*v2)(void *, int, char **);
  } creator;
  void *handle;
};
__attribute__((visibility("default"))) void lammpsplugin_init(void *lmp, void *handle, void *regfunc);
}

namespace {

#if defined(MPICH_VERSION)
constexpr const char *kMpi = "MPICH";
#elif defined(OPEN_MPI)
constexpr const char *kMpi = "Open MPI";
#else
constexpr const char *kMpi = "";
#endif

void *make_pair(void *lmp) { return new PairSNNP(static_cast<LAMMPS *>(lmp)); }

// Classes differ between builds of one version, and handles of MPI between its implementations: whoever calls across that
// difference crashes. So nothing of LAMMPS's objects is touched before its identity is known.
bool fits() {
  const char *descriptor = LAMMPS::git_descriptor();
  if (strcmp(descriptor, SNNP_LAMMPS_DESCRIPTOR) != 0) {
    fprintf(stderr,
            "snnp: the pair style is left out: the plugin was compiled for LAMMPS %s, this is %s; build it again with "
            "'snnp lammps build'\n",
            SNNP_LAMMPS_DESCRIPTOR, descriptor);
    return false;
  }
#ifndef MPI_STUBS
  static char library[8192];
  int length = 0;
  MPI_Get_library_version(library, &length);
  if (!strstr(library, kMpi)) {
    library[strcspn(library, "\n")] = '\0';
    fprintf(stderr,
            "snnp: the pair style is left out: the plugin was compiled with %s, this LAMMPS runs with %s; build it again "
            "with 'snnp lammps build' and that MPI's mpicxx first on the search path\n",
            kMpi, library);
    return false;
  }
#endif
  return true;
}

}  // namespace

void lammpsplugin_init(void *lmp, void *handle, void *regfunc) {
  if (!fits()) return;
  lammpsplugin_t plugin = {};
  plugin.version = static_cast<LAMMPS *>(lmp)->version;
  plugin.style = "pair";
  plugin.name = "snnp";
  plugin.info = "spline-based neural network potentials";
  plugin.author = "the contributors of snnp";
  plugin.creator.v1 = make_pair;
  plugin.handle = handle;
  reinterpret_cast<void (*)(lammpsplugin_t *, void *)>(regfunc)(&plugin, lmp);
}
