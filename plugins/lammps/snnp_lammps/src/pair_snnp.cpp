#include "pair_snnp.h"

#include <cmath>
#include <cstring>

#include "atom.h"
#include "comm.h"
#include "error.h"
#include "force.h"
#include "memory.h"
#include "neigh_list.h"
#include "neighbor.h"
#include "update.h"
#include "utils.h"

using namespace LAMMPS_NS;

static std::string counted(int n, const char *what) {
  return std::to_string(n) + " " + what + (n == 1 ? "" : "s");
}

PairSNNP::PairSNNP(LAMMPS *lmp) : Pair(lmp) {
  single_enable = 0;  // the energy is no sum over pairs
  restartinfo = 0;    // a restart file does not hold the model: pair_style and pair_coeff are said again
  one_coeff = 1;
  manybody_flag = 1;
  no_virial_fdotr_compute = 1;  // the kernel has the virial at hand
  centroidstressflag = CENTROID_AVAIL;
}

PairSNNP::~PairSNNP() {
  if (copymode || !allocated) return;
  memory->destroy(setflag);
  memory->destroy(cutsq);
}

void PairSNNP::allocate() {
  allocated = 1;
  const int n = atom->ntypes + 1;
  memory->create(setflag, n, n, "pair:setflag");
  memory->create(cutsq, n, n, "pair:cutsq");
}

void PairSNNP::settings(int narg, char **arg) {
  n_threads = 1;
  if (narg == 2 && !strcmp(arg[0], "threads")) n_threads = utils::inumeric(FLERR, arg[1], false, lmp);
  else if (narg) error->all(FLERR, "Pair style snnp takes nothing, or 'threads N'");
  if (n_threads < 1) error->all(FLERR, "Pair style snnp needs at least one thread");
}

void PairSNNP::coeff(int narg, char **arg) {
  if (narg < 3) error->all(FLERR, "pair_coeff of snnp needs a file, and an element or NULL for each atom type");
  const int types = atom->ntypes;
  if (narg - 3 != types)
    error->all(FLERR, "pair_coeff of snnp names " + counted(narg - 3, "element") + ", but the system has " +
                          counted(types, "atom type") + "; name one for each type, or NULL");
  load(arg[2]);
  if (!allocated) allocate();
  species_of_type.assign(types + 1, -1);
  for (int type = 1; type <= types; ++type) {
    const std::string name = arg[2 + type];
    if (name == "NULL") continue;
    for (size_t k = 0; k < model.elements.size(); ++k)
      if (model.elements[k] == name) species_of_type[type] = static_cast<int32_t>(k);
    if (species_of_type[type] >= 0) continue;
    std::string known;
    for (const std::string &element : model.elements) known += " " + element;
    error->all(FLERR, "Atom type " + std::to_string(type) + ": the model in '" + std::string(arg[2]) +
                          "' does not know '" + name + "', but" + known + " (and NULL for types of other styles)");
  }
  for (int i = 1; i <= types; ++i)
    for (int j = i; j <= types; ++j) setflag[i][j] = species_of_type[i] >= 0 && species_of_type[j] >= 0;
}

// The first rank reads, so that a thousand ranks do not ask the file system at once, and all stop together at a fault.
void PairSNNP::load(const std::string &name) {
  std::string content, fault;
  if (comm->me == 0) {
    const std::string path = utils::get_potential_file_path(name);
    content = snnp_lammps::read_whole(path.empty() ? name : path, fault);
  }
  for (std::string *text : {&fault, &content}) {
    int bytes = static_cast<int>(text->size());
    MPI_Bcast(&bytes, 1, MPI_INT, 0, world);
    text->resize(static_cast<size_t>(bytes));
    MPI_Bcast(text->data(), bytes, MPI_CHAR, 0, world);
    if (!fault.empty()) error->all(FLERR, fault);
  }
  model = snnp_lammps::parse_model(content, name, fault);
  if (!fault.empty()) error->all(FLERR, fault);
}

void PairSNNP::init_style() {
  if (strcmp(update->unit_style, "metal") != 0)
    error->all(FLERR, "Pair style snnp computes in Angstrom and eV: it needs 'units metal', not '" +
                          std::string(update->unit_style) + "'");
  if (!force->newton_pair)
    error->all(FLERR, "Pair style snnp needs 'newton on': forces on ghost atoms must go back to their owners");
  // Pairs of bonded atoms with both factors zero are left out of the list, and with them their part of the energy.
  for (int k = 1; atom->molecular != Atom::ATOMIC && k <= 3; ++k)
    if (force->special_lj[k] == 0.0 && force->special_coul[k] == 0.0)
      error->all(FLERR, "Pair style snnp needs the pairs of bonded atoms, which zero factors of special_bonds take out of "
                        "the list: say 'special_bonds lj/coul 1.0 1.0 1.0' (another style's may be 1.0e-10)");
  neighbor->add_request(this, NeighConst::REQ_FULL);
}

double PairSNNP::init_one(int, int) { return model.cutoff; }

// Rows as the kernel takes them. With hybrid styles some atoms are in no row: theirs stays empty, and their energy unused.
void PairSNNP::copy_list() {
  const int n_local = atom->nlocal;
  first.assign(static_cast<size_t>(n_local) + 1, 0);
  for (int k = 0; k < list->inum; ++k) first[list->ilist[k] + 1] = list->numneigh[list->ilist[k]];
  for (int i = 0; i < n_local; ++i) first[i + 1] += first[i];
  neighbour.resize(static_cast<size_t>(first[n_local]));
  for (int k = 0; k < list->inum; ++k) {
    const int i = list->ilist[k], *row = list->firstneigh[i];
    int32_t *out = neighbour.data() + first[i];
    for (int e = 0; e < list->numneigh[i]; ++e) out[e] = row[e] & NEIGHMASK;  // the other bits say how atoms are bonded
  }
}

void PairSNNP::compute(int eflag, int vflag) {
  ev_init(eflag, vflag);
  const int n_local = atom->nlocal;
  if (n_local == 0) return;  // a rank without atoms
  const size_t n_all = static_cast<size_t>(n_local) + atom->nghost;
  if (neighbor->ago == 0 || species.size() != n_all || first.size() != static_cast<size_t>(n_local) + 1) copy_list();
  species.resize(n_all);
  for (size_t i = 0; i < n_all; ++i) {  // at every call: types are swapped by Monte Carlo without a new list
    const int32_t found = species_of_type[atom->type[i]];
    species[i] = found < 0 ? 0 : found;  // types of other styles are in no row, but must be an element
  }
  energies.resize(static_cast<size_t>(n_local));
  forces.resize(3 * n_all);
  const bool per_atom = vflag_atom || cvflag_atom;
  if (per_atom) atom_virials.resize(9 * n_all);

  double virial_sum[9];
  snnp_system system = {};
  system.n_atoms = static_cast<int64_t>(n_all);
  system.n_structures = 1;
  system.positions = atom->x[0];
  system.species = species.data();
  system.first = first.data();
  system.neighbour = neighbour.data();
  system.n_threads = n_threads;
  system.energies = energies.data();
  system.forces = forces.data();
  system.virial = virial_sum;
  const snnp_domain domain = {n_local, per_atom ? atom_virials.data() : nullptr};
  snnp_report report;
  if (snnp_evaluate_domain(model.plan.get(), model.bytes, &system, &domain, &report) != SNNP_OK) stop(report);

  double *out = atom->f[0];
  for (size_t k = 0; k < 3 * n_all; ++k) out[k] += forces[k];
  if (evflag) tally(virial_sum);
}

// Energies and virials, to LAMMPS's sums and arrays. The kernel's virial is r (x) dE/dr, LAMMPS's r (x) force.
void PairSNNP::tally(const double *virial_sum) {
  static const int six[6] = {0, 4, 8, 1, 2, 5};           // xx yy zz xy xz yz
  static const int nine[9] = {0, 4, 8, 1, 2, 5, 3, 6, 7};  // and yx zx zy
  for (int k = 0; eflag_either && k < list->inum; ++k) {
    const int i = list->ilist[k];
    if (eflag_global) eng_vdwl += energies[i];
    if (eflag_atom) eatom[i] += energies[i];
  }
  if (vflag_global)
    for (int a = 0; a < 6; ++a) virial[a] -= virial_sum[six[a]];
  const size_t n_all = species.size();
  for (size_t i = 0; vflag_atom && i < n_all; ++i) {
    const double *v = &atom_virials[9 * i];
    for (int a = 0; a < 6; ++a) vatom[i][a] -= 0.5 * (v[six[a]] + v[nine[a < 3 ? a : a + 3]]);  // the symmetric part
  }
  for (size_t i = 0; cvflag_atom && i < n_all; ++i)
    for (int a = 0; a < 9; ++a) cvatom[i][a] -= atom_virials[9 * i + nine[a]];
}

void PairSNNP::stop(const snnp_report &report) {
  if (report.status == SNNP_NO_MEMORY) error->one(FLERR, "Pair style snnp: not enough memory for work arrays of the kernel");
  if (report.status != SNNP_OVERLAP) error->one(FLERR, "Pair style snnp: the packed model in memory is damaged");
  const auto name = [this](int64_t i) { return std::to_string(atom->tag_enable ? atom->tag[i] : tagint(i)); };
  if (std::isnan(report.value))
    error->one(FLERR, "Pair style snnp: the position of atom " + name(report.i) + " or of a neighbour is not a number: "
                      "the run has blown up; take a shorter time step, or relax the structure first");
  error->one(FLERR, "Pair style snnp: atoms " + name(report.i) + " and " + name(report.j) + " are " +
                        std::to_string(report.value) + " Angstrom apart: a structure with atoms written twice, or a run "
                        "that has blown up");
}

double PairSNNP::memory_usage() {
  const size_t doubles = energies.capacity() + forces.capacity() + atom_virials.capacity();
  const size_t integers = neighbour.capacity() + species.capacity() + 2 * first.capacity();
  return Pair::memory_usage() + 8.0 * static_cast<double>(doubles) + 4.0 * static_cast<double>(integers) +
         static_cast<double>(model.bytes);
}
