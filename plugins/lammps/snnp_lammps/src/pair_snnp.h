// The LAMMPS pair style `snnp`: a spline-based neural network potential, evaluated by the kernel of the package snnp.
//
//     pair_style snnp [threads N]
//     pair_coeff * * FILE Cu Ni NULL
#pragma once
#include <string>
#include <vector>

#include "model_file.h"
#include "pair.h"
#include "snnp_kernels.h"

namespace LAMMPS_NS {

class PairSNNP : public Pair {
 public:
  explicit PairSNNP(class LAMMPS *);
  ~PairSNNP() override;
  PairSNNP(const PairSNNP &) = delete;
  PairSNNP &operator=(const PairSNNP &) = delete;

  void settings(int, char **) override;
  void coeff(int, char **) override;
  void init_style() override;
  double init_one(int, int) override;
  void compute(int, int) override;
  double memory_usage() override;

 private:
  snnp_lammps::Model model;
  int n_threads = 1;
  std::vector<int32_t> species_of_type;  // -1 for NULL

  // What the kernel reads: rows in the order of atoms, renewed with LAMMPS's list, and elements of local and ghost atoms.
  std::vector<int64_t> first;
  std::vector<int32_t> neighbour, species;
  // What it writes.
  std::vector<double> energies, forces, atom_virials;

  void load(const std::string &);
  void allocate();
  void copy_list();
  void tally(const double *);
  [[noreturn]] void stop(const snnp_report &);
};

}  // namespace LAMMPS_NS
