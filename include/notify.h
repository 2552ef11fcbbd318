/* What a service tells systemd that started it with Type=notify (sd_notify(3)): a datagram of lines
 * NAME=value to the socket that NOTIFY_SOCKET names. Ours instead of libsystemd's, which is 30 lines of its
 * 900 KB. Without NOTIFY_SOCKET nothing is said. */
#ifndef LATENTD_NOTIFY_H
#define LATENTD_NOTIFY_H

/* Sends the lines that FMT makes, such as "READY=1\nSTATUS=ready". Thread-safe; a socket that cannot be
 * reached is logged at debug level, for nothing here depends on it. */
void notify(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* Seconds within which the service manager wants to hear WATCHDOG=1; 0: it does not watch this process. */
double notify_watchdog(void);

#endif
