int program_main(int argc, char **argv);
int main(int argc, char **argv) { return program_main(argc, argv); }
