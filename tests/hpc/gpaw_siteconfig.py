# How GPAW is built for this lane (GPAW_CONFIG): MPI, libxc, OpenBLAS and FFTW of Debian.
mpi = True
compiler = "mpicxx"
fftw = True
noblas = False
nolibxc = False
libraries = ["xc", "openblas", "fftw3"]
