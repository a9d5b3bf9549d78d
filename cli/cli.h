/* SPDX-License-Identifier: Apache-2.0 */
/* cli.h: what the subcommands of `tarn` share: exit codes, the state directory, finding a mount's daemon and talking to it. */
#pragma once
#include <sys/types.h>

#include "base/json.h"

/* Part of the interface: scripts rely on them. Printed by --help and in the manual. */
enum exit_code {
        EXIT_OK = 0,
        EXIT_OTHER = 1,
        EXIT_USAGE = 2,       /* unknown option, bad value, bad URL */
        EXIT_SERVER = 3,      /* the server cannot be reached */
        EXIT_SIGN_IN = 4,     /* not signed in, wrong password, login expired or revoked */
        EXIT_TLS = 5,         /* the server's certificate is not trusted */
        EXIT_WORKSPACE = 6,   /* no such workspace, or no access to it */
        EXIT_MOUNT_POINT = 7, /* missing, not a directory, not empty, busy, FUSE not permitted */
        EXIT_IN_USE = 8,      /* another daemon uses this state */
        EXIT_DISK = 9,        /* local disk full or not writable, local state not readable */
        EXIT_TIMEOUT = 10,    /* not everything is on the server yet */
        EXIT_NOT_MOUNTED = 11,
        EXIT_UPGRADE = 12,    /* the server, or the local state, is newer than this program */
};
void exit_codes_print(void);

int cmd_login(int argc, char **argv);
int cmd_mount(int argc, char **argv);
int cmd_mount_helper(int argc, char **argv); /* called as mount.tarn by mount(8) */
int cmd_umount(int argc, char **argv);
int cmd_undelete(int argc, char **argv);
int cmd_status(int argc, char **argv);
int cmd_wait(int argc, char **argv);
int cmd_accept(int argc, char **argv);
int cmd_held(int argc, char **argv);
int cmd_retry(int argc, char **argv);
int cmd_doctor(int argc, char **argv);
int cmd_scrub(int argc, char **argv);
int cmd_conflicts(int argc, char **argv);

/* One line on stderr, "tarn COMMAND: ...", and the code back. */
int cli_fail(const char *program, int code, const char *fmt, ...) _printf_(3, 4);
/* Turns args_parse's answer into an exit code: 0 after --help (with the exit codes printed below it), else EXIT_USAGE. */
int args_exit(int r);

/* ---- state.c ---- */
/* option, or TARN_STATE_DIR, or $XDG_STATE_HOME/tarn, or ~/.local/state/tarn; absolute, not made. */
int state_dir(const char *option, char **ret) _must_check_;
/* Everything of one mount: STATE/mounts/NAME/. */
struct place { char *dir, *lock, *info, *log, *cache; };
int place_of(const char *state, const char *base_url, const char *workspace, struct place *ret) _must_check_;
void place_free(struct place *p);
/* A mount's own account of itself, written by its daemon: mount.json. */
struct mount_info { char *place_dir, *mountpoint, *url; pid_t pid; };
int mount_info_write(const struct place *p, const char *mountpoint, const char *url) _must_check_;
void mount_infos_free(struct mount_info *m, size_t n);
int mount_infos_list(const char *state, struct mount_info **ret, size_t *ret_n) _must_check_;
/* What is known of a place also when nothing is mounted: place.json, written at each start. Sizes 0: unknown. */
struct place_note { char *place_dir, *mountpoint, *url, *base_url, *workspace, *cache_dir, *ca_file; uint64_t limit_bytes, floor_bytes; };
int place_note_write(const struct place *p, const struct place_note *note) _must_check_;
void place_notes_free(struct place_note *v, size_t n);
int place_notes_list(const char *state, struct place_note **ret, size_t *ret_n) _must_check_;
/* The mount that `dir` is or lies in; NULL if none. Does not touch dir itself as long as its text tells: a mount that hangs must not hang us. */
const struct mount_info *mount_infos_find(const struct mount_info *m, size_t n, const char *dir);
/* Absolute path of a mount point whose last part is not looked at. */
int mountpoint_path(const char *dir, char **ret) _must_check_;

/* ---- remount.c ---- */
bool remount_asked(const char *list);                                    /* of -o, or NULL */
int remount(const char *program, const char *dir, const char *list);     /* exit code */

/* ---- umount.c ---- */
bool mount_is_listed(const char *path);             /* a FUSE mount is there, by the kernel's own list; never touches the path */
int mount_detach(const char *path) _must_check_;    /* lazily, with fusermount3 or umount */

/* ---- ask.c: the client's side of the control socket ---- */
int control_connect(const char *place_dir, int *ret_fd) _must_check_; /* -ECONNREFUSED, -ENOENT: no daemon */
int control_send(int fd, const json_t *request) _must_check_;
/* One line of answer; deadline_ms monotonic. -ETIMEDOUT, -EPIPE: the daemon went away. */
int control_receive(int fd, int64_t deadline_ms, json_t **ret) _must_check_;
int control_ask(const char *place_dir, const char *command, int64_t timeout_ms, json_t **ret) _must_check_;
/* The same with a line on stderr if there is no answer. 0 or an exit code. */
int mount_ask(const char *program, const struct mount_info *m, const char *command, int64_t timeout_ms, json_t **ret);
int mount_query(const char *program, const struct mount_info *m, const json_t *q /* NULL: out of memory */, int64_t timeout_ms, json_t **ret);
/* place is path, or a directory that it is below; "" is the top. */
bool path_is_at(const char *path, const char *place);
/* An absolute path as one from the top of the mount; "" for the top, NULL and a path that is elsewhere. Points into full. */
const char *path_in_mount(const struct mount_info *m, const char *full);
/* Fields of an answer; what is missing or of another type is "" or 0. */
const char *answer_str(const json_t *j, const char *key);
int64_t answer_int(const json_t *j, const char *key);

/* Mounts that a subcommand means: the one of `dir`, or (dir NULL) all with a living daemon; found ends with NULL. 0, or an exit code after a line on stderr. */
struct mounts { struct mount_info *all; size_t n; const struct mount_info **found; };
int find_mounts(const char *program, const char *state, const char *dir, struct mounts *ret);
void mounts_free(struct mounts *m);
/* How most subcommands begin: the arguments, the state directory, the mounts. False: it ends here, with *ret_code. */
struct arg;
bool mounts_of_arguments(const char *program, const struct arg *table, int argc, char **argv, const char *const *state_option, const char *const *dir, struct mounts *ret, int *ret_code) _must_check_;
