"""Numbers of system calls on the architectures that the filter knows, by what it does with them."""

from __future__ import annotations

import os
from typing import Final

# name:x86_64:aarch64, "-" where an architecture lacks the call.
_ALLOWED = """
read:0:63 write:1:64 readv:19:65 writev:20:66 pread64:17:67 pwrite64:18:68 lseek:8:62 close:3:57
close_range:436:436 dup:32:23 dup2:33:- dup3:292:24 fcntl:72:25 flock:73:32 fsync:74:82
fdatasync:75:83 stat:4:- fstat:5:80 lstat:6:- newfstatat:262:79 statx:332:291 statfs:137:43
fstatfs:138:44 access:21:- faccessat:269:48 faccessat2:439:439 readlink:89:- readlinkat:267:78
getcwd:79:17 getdents64:217:61 rmdir:84:- ftruncate:77:46 fadvise64:221:223 copy_file_range:326:285
sendfile:40:71 utimensat:280:88 umask:95:166 mmap:9:222 mprotect:10:226 munmap:11:215 mremap:25:216
madvise:28:233 mincore:27:232 brk:12:214 membarrier:324:283 rt_sigaction:13:134
rt_sigprocmask:14:135 rt_sigreturn:15:139 rt_sigpending:127:136 rt_sigtimedwait:128:137
rt_sigsuspend:130:133 sigaltstack:131:132 restart_syscall:219:128 pipe:22:- pipe2:293:59 select:23:-
pselect6:270:72 poll:7:- ppoll:271:73 epoll_create1:291:20 epoll_ctl:233:21 epoll_wait:232:-
epoll_pwait:281:22 epoll_pwait2:441:441 eventfd2:290:19 timerfd_create:283:85 timerfd_settime:286:86
timerfd_gettime:287:87 setitimer:38:103 getitimer:36:102 alarm:37:- nanosleep:35:101
clock_nanosleep:230:115 clock_gettime:228:113 clock_getres:229:114 gettimeofday:96:169 time:201:-
times:100:153 futex:202:98 futex_waitv:449:449 set_robust_list:273:99 get_robust_list:274:100
set_tid_address:218:96 rseq:334:293 arch_prctl:158:- getpid:39:172 getppid:110:173 gettid:186:178
getpgrp:111:- getpgid:121:155 getsid:124:156 getuid:102:174 geteuid:107:175 getgid:104:176
getegid:108:177 getgroups:115:158 getrusage:98:165 getrlimit:97:163 getrandom:318:278 getcpu:309:168
sysinfo:99:179 uname:63:160 sched_yield:24:124 sched_getaffinity:204:123 sched_getparam:143:121
sched_getscheduler:145:120 sched_get_priority_max:146:125 sched_get_priority_min:147:126
getpriority:140:141 exit:60:93 exit_group:231:94 landlock_create_ruleset:444:444
landlock_add_rule:445:445 landlock_restrict_self:446:446
"""
_FORBIDDEN = """
socket:41:198 socketpair:53:199 connect:42:203 bind:49:200 listen:50:201 accept:43:202
accept4:288:242 sendto:44:206 sendmmsg:307:269 recvfrom:45:207 recvmsg:47:212 recvmmsg:299:243
ptrace:101:117 process_vm_readv:310:270 process_vm_writev:311:271 process_madvise:440:440
kcmp:312:272 kill:62:129 tkill:200:130 rt_sigqueueinfo:129:138 rt_tgsigqueueinfo:297:240
pidfd_open:434:434 pidfd_getfd:438:438 pidfd_send_signal:424:424 fork:57:- vfork:58:- execve:59:221
execveat:322:281 unshare:272:97 setns:308:268 add_key:248:217 request_key:249:218 keyctl:250:219
bpf:321:280 perf_event_open:298:241 userfaultfd:323:282 io_uring_setup:425:425
io_uring_enter:426:426 io_uring_register:427:427 mount:165:40 umount2:166:39 pivot_root:155:41
chroot:161:51 mount_setattr:442:442 move_mount:429:429 open_tree:428:428 fsopen:430:430
fsconfig:431:431 fsmount:432:432 fspick:433:433 chmod:90:- fchmod:91:52 fchmodat:268:53
fchmodat2:452:452 chown:92:- fchown:93:55 lchown:94:- fchownat:260:54 link:86:- linkat:265:37
symlink:88:- symlinkat:266:36 mknod:133:- mknodat:259:33 setxattr:188:5 lsetxattr:189:6
fsetxattr:190:7 removexattr:197:14 lremovexattr:198:15 fremovexattr:199:16 setuid:105:146
setgid:106:144 setreuid:113:145 setregid:114:143 setresuid:117:147 setresgid:119:149
setgroups:116:159 setfsuid:122:151 setfsgid:123:152 capset:126:91 setpgid:109:154 setsid:112:157
setpriority:141:140 setrlimit:160:164 sched_setaffinity:203:122 sched_setscheduler:144:119
sched_setattr:314:274 ioprio_set:251:30 personality:135:92 seccomp:317:277 init_module:175:105
finit_module:313:273 delete_module:176:106 kexec_load:246:104 kexec_file_load:320:294 reboot:169:142
swapon:167:224 swapoff:168:225 sethostname:170:161 setdomainname:171:162 settimeofday:164:170
clock_settime:227:112 adjtimex:159:171 clock_adjtime:305:266 acct:163:89 quotactl:179:60 iopl:172:-
ioperm:173:- modify_ldt:154:- syslog:103:116 memfd_create:319:279 memfd_secret:447:447
name_to_handle_at:303:264 open_by_handle_at:304:265 fanotify_init:300:262 inotify_init:253:-
inotify_init1:294:26 shmget:29:194 shmat:30:196 shmctl:31:195 semget:64:190 msgget:68:186
mq_open:240:180 vmsplice:278:75 splice:275:76 tee:276:77
"""
# Allowed, too, but skills looks at their paths first: the last column says which arguments these are.
_WATCHED = """
open:2:-:0 openat:257:56:1 unlink:87:-:0 unlinkat:263:35:1 mkdir:83:-:0 mkdirat:258:34:1
rename:82:-:0,1 renameat:264:38:1,3 renameat2:316:276:1,3 truncate:76:45:0
"""
_CONDITIONAL = """
clone:56:220 clone3:435:435 ioctl:16:29 prctl:157:167 prlimit64:302:261 tgkill:234:131
sendmsg:46:211
"""


def _table(text: str, column: int) -> dict[str, int]:
    rows = (entry.split(":") for entry in text.split())
    return {row[0]: int(row[column]) for row in rows if row[column] != "-"}


class SystemCalls:
    """The calls of one architecture."""

    def __init__(self, machine: str) -> None:
        """Args: `machine` as os.uname names it. Raises KeyError for an architecture that is not known."""
        column, self.audit_arch = _MACHINES[machine]
        self.allowed = _table(_ALLOWED, column)
        self.forbidden = _table(_FORBIDDEN, column)
        self.conditional = _table(_CONDITIONAL, column)
        self.watched = _table(_WATCHED, column)
        rows = (entry.split(":") for entry in _WATCHED.split())
        # Name → positions of the paths among the arguments.
        self.paths = {row[0]: tuple(map(int, row[3].split(","))) for row in rows}
        # Not for the child once it runs, but the way in which its filter comes in.
        self.seccomp_number = self.forbidden["seccomp"]
        self.names = {
            number: name
            for part in (self.forbidden, self.conditional, self.watched)
            for name, number in part.items()
        }


# Column of the table, and AUDIT_ARCH_* of linux/audit.h.
_MACHINES: Final = {"x86_64": (1, 0xC000003E), "aarch64": (2, 0xC00000B7)}


def system_calls() -> SystemCalls | None:
    """Those of this machine; None where the filter does not know it."""
    machine = os.uname().machine
    return SystemCalls(machine) if machine in _MACHINES else None
