"What the command line does: tour, build, doctor, report."
